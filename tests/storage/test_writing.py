"""A file or a folder is written whole, or not at all."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from mlir_jax.storage import writing


def test_a_file_is_written_whole_or_not_at_all(monkeypatch, tmp_path):
  path = tmp_path / "file.json"
  writing.write_aside(str(path), "old")

  def fail(*_):
    raise OSError("no space left")

  monkeypatch.setattr("os.replace", fail)
  with pytest.raises(OSError, match="no space"):
    writing.write_aside(str(path), "new")
  assert path.read_text() == "old"
  assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_the_last_of_two_writers_wins_and_no_link_is_followed(tmp_path):
  path, victim = tmp_path / "a" / "vectors.npy", tmp_path / "victim"
  path.parent.mkdir()
  victim.write_text("kept")
  (path.parent / "vectors.npy.tmp").symlink_to(victim)
  path.symlink_to(victim)
  with (
    writing.writing_aside(str(path)) as first,
    writing.writing_aside(str(path)) as second,
  ):
    first.write(b"fir")
    second.write(b"second")
    first.write(b"st")
    asides = [aside.name for aside in path.parent.glob(".*")]
    assert len(asides) == 2
    for name in asides:
      assert re.fullmatch(r"\.vectors\.npy\.[0-9a-f]{16}\.tmp", name)
  assert path.read_bytes() == b"first"
  assert not path.is_symlink()
  assert victim.read_text() == "kept"
  assert not list(path.parent.glob(".*"))
  plain = path.parent / "plain"
  plain.touch()
  assert path.stat().st_mode == plain.stat().st_mode


def test_a_device_or_a_folder_is_not_written_over(tmp_path):
  for path in ("/dev/null", str(tmp_path)):
    with pytest.raises(ValueError, match="is not a file"):
      writing.write_aside(path, "text")


def test_a_folder_gets_its_name_at_the_end(tmp_path):
  path = tmp_path / "a" / "folder"
  with writing.folder_aside(path) as aside:
    (aside / "file").write_text("text")
    assert not path.exists()
  assert [name.name for name in path.parent.iterdir()] == ["folder"]
  assert (path / "file").read_text() == "text"
  plain = path.parent / "plain"
  plain.mkdir()
  assert path.stat().st_mode == plain.stat().st_mode
  with writing.folder_aside(plain) as aside:  # An empty folder is replaced.
    (aside / "file").touch()
  assert (plain / "file").exists()


def test_after_an_error_there_is_no_folder(tmp_path):
  with (
    pytest.raises(KeyError),
    writing.folder_aside(tmp_path / "folder") as aside,
  ):
    (aside / "file").touch()
    raise KeyError("a fault")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("other", ["folder", "file"])
def test_the_first_of_two_writers_of_a_folder_wins(tmp_path, other):
  path = tmp_path / "folder"
  with pytest.raises(writing.TakenError), writing.folder_aside(path) as aside:
    (aside / "mine").touch()
    if other == "file":
      path.touch()
    else:
      with writing.folder_aside(path) as theirs:
        (theirs / "theirs").touch()
      assert aside.exists()  # The other writer leaves it alone.
  assert [name.name for name in tmp_path.iterdir()] == ["folder"]
  assert other == "file" or os.listdir(path) == ["theirs"]


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path):
  path = tmp_path / "[x] folder"
  code = (
    "import os, sys; from mlir_jax.storage import writing\n"
    "with writing.folder_aside(sys.argv[1]) as aside:\n"
    "  (aside / 'file').touch()\n  os._exit(9)"
  )
  subprocess.run([sys.executable, "-c", code, path])
  (left,) = tmp_path.iterdir()
  assert re.fullmatch(r"\.\[x\] folder\.[0-9a-f]{16}\.tmp", left.name)
  empty = left.with_name(f".{path.name}.0123456789abcdef.tmp")
  empty.mkdir()  # Its writer was killed before it made the lock.
  others = tmp_path / ".[x] folder.txt.0123456789abcdef.tmp"
  shutil.copytree(left, others)
  with writing.folder_aside(path):
    assert not left.exists() and not empty.exists()
  assert others.exists() and path.is_dir()
