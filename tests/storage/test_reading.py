"""A damaged file has one message: its name, the fault, and what to do."""

import ast
import concurrent.futures
import os
import pathlib
import platform
import time

import pytest

import mlir_jax
from mlir_jax.storage import digests, reading

PACKAGE = pathlib.Path(mlir_jax.__file__).parent
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(
  "content, problem",
  [
    (b"", "it is empty"),
    (b'{"a": 1', "it is not JSON (line 1, column 8"),
    (b"\xef\xbb\xbf{}", "it is not JSON"),
    (b'{"a": "\xff"}', "byte 8 is not UTF-8"),
    (b'{"a": "\\ud800"}', "half of a surrogate pair"),
    (b'{"a": 1, "a": 2}', "the key 'a' is there twice"),
    (b'{"a": ' + 5000 * b"1" + b"}", "a number with too many digits"),
    (b'{"a": ' + 200 * b"[" + 200 * b"]" + b"}", "nested too deeply"),
    (100_000 * b"[", "nested too deeply"),
    (b"[1]", "it holds a list, not an object"),
    (b"null", "it holds the value None, not an object"),
    (POINTER, "it is a Git LFS pointer"),
  ],
)
def test_a_damaged_json_file_is_refused_in_one_line(content, problem, tmp_path):
  path = tmp_path / "config.json"
  path.write_bytes(content)
  with pytest.raises(reading.UnreadableError) as error:
    reading.read_json(path, mend="Do this.")
  message = str(error.value)
  assert message.startswith(f"{path} cannot be read: ") and problem in message
  assert message.endswith("Do this.") or 'Run "git lfs pull"' in message
  assert "\n" not in message


def test_folders_pipes_and_devices_are_not_read(tmp_path):
  (tmp_path / "folder").mkdir()
  os.mkfifo(tmp_path / "pipe")  # Reading it would wait for ever.
  (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
  for name, problem in (
    ("folder", "a folder"),
    ("pipe", "a pipe"),
    ("dangling", "does not exist"),
    ("nu\0l", "null byte|does not exist"),
  ):
    with pytest.raises(reading.UnreadableError, match=problem):
      reading.read_json(tmp_path / name)


def test_a_whole_file_is_read_as_it_is(tmp_path):
  path = tmp_path / "a.json"
  path.write_text(
    '{"ä": [1, 2.5, null], "b": {"c": "\\ud83d\\ude00"}}', "utf-8"
  )
  assert reading.read_json(path) == {"ä": [1, 2.5, None], "b": {"c": "😀"}}
  path.write_text("[]")
  assert reading.read_json(path, list) == []


def test_a_named_file_stays_in_the_folder(tmp_path):
  folder = tmp_path / "model"
  (folder / "1_Pooling").mkdir(parents=True)
  (tmp_path / "secret").mkdir()
  (folder / "out").symlink_to(tmp_path / "secret")
  (folder / "within").symlink_to(folder / "1_Pooling")
  said_by = folder / "modules.json"
  for name in ("", "1_Pooling", "within", "a..b/c", "./x"):
    assert reading.inside(folder, name, said_by) == folder / name
  for name, problem in (
    ("../secret", "leaves the folder"),
    ("1_Pooling/../../secret", "leaves the folder"),
    (str(tmp_path / "secret"), "leaves the folder"),
    ("out/file", "a link that leaves the folder"),
    ("..\\secret", "not a path"),
    ("a\0b", "not a path"),
    (5, "not a path"),
    (None, "not a path"),
  ):
    with pytest.raises(reading.UnreadableError, match=problem) as error:
      reading.inside(folder, name, said_by)
    assert str(said_by) in str(error.value)


def test_links_inside_the_hubs_cache_are_followed(tmp_path):
  blobs = tmp_path / "models--a--b" / "blobs"
  snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
  for folder in (blobs, snapshot / "query"):
    folder.mkdir(parents=True)
  for name in ("x", "query/x"):
    (snapshot / name).symlink_to(blobs / "1")
  (snapshot / "y").symlink_to(tmp_path / "models--c--d" / "blobs" / "1")
  reading.inside(snapshot, "x", snapshot / "modules.json")
  reading.inside(snapshot / "query", "x", snapshot / "query/modules.json")
  with pytest.raises(reading.UnreadableError, match="leaves the folder"):
    reading.inside(snapshot, "y", snapshot / "modules.json")


def test_a_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  folder = tmp_path / "tokens"
  folder.mkdir()
  file = folder / "a.npy"
  file.write_bytes(b"content")
  expected = {"a.npy": digests.of_file(file)}
  hashed = []
  digest = digests.of_file
  monkeypatch.setattr(
    digests, "of_file", lambda path: hashed.append(path) or digest(path)
  )

  def check():
    hashed.clear()
    digests.check(folder, expected, "Do this.")
    return len(hashed)

  # A file that was just written may be written again in the same moment.
  assert [check(), check()] == [1, 1]
  monkeypatch.setattr(digests, "_FRESH_SECONDS", -1e9)
  assert [check(), check()] == [1, 0]
  # The same size and time: another inode, or time of change, is enough.
  times = file.stat()
  file.write_bytes(b"contenu")
  os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
  with pytest.raises(
    reading.UnreadableError, match=r"a\.npy has changed.*Do th"
  ):
    check()
  file.write_bytes(b"content")
  assert [check(), check()] == [1, 0]
  # Another expected hash, a lost or a damaged memory: all files are checked.
  (memory,) = (tmp_path / "cache/mlir_jax/checked").glob("*.json")
  for damage in (b"", b"[1]", b'{"a.npy": 1}', b"\xff"):
    memory.write_bytes(damage)
    assert [check(), check()] == [1, 0]
  expected = {"a.npy": "0" * 64}
  with pytest.raises(reading.UnreadableError, match="has changed"):
    check()


def test_one_process_hashes_while_the_others_wait(tmp_path, monkeypatch):
  """Threads that open the lock file exclude each other like processes."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr(digests, "_FRESH_SECONDS", -1e9)
  (tmp_path / "a").write_bytes(b"1")
  expected = {"a": digests.of_file(tmp_path / "a")}
  hashed = []
  digest = digests.of_file

  def slow_digest(path):
    hashed.append(path)
    time.sleep(0.2)
    return digest(path)

  monkeypatch.setattr(digests, "of_file", slow_digest)
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    list(pool.map(lambda _: digests.check(tmp_path, expected, ""), range(4)))
  assert len(hashed) == 1
  # Another machine with the same home has other files at this path.
  monkeypatch.setattr(platform, "node", lambda: "another")
  digests.check(tmp_path, expected, "")
  assert len(hashed) == 2


def test_a_repeated_key_among_very_many_is_found_quickly():
  keys = ", ".join(f'"{i}": 1' for i in range(100_000))
  start = time.monotonic()
  with pytest.raises(reading.UnreadableError, match="the key '99999' is there"):
    reading.parse_json(f'{{{keys}, "99999": 1}}'.encode(), "a.json")
  assert time.monotonic() - start < 10  # Comparing all pairs takes minutes.


def test_without_a_cache_a_file_is_hashed_every_time(tmp_path, monkeypatch):
  monkeypatch.setattr(digests, "_FRESH_SECONDS", -1e9)
  (tmp_path / "cache").write_text("a file, not a folder")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  (tmp_path / "a").write_bytes(b"1")
  expected = {"a": digests.of_file(tmp_path / "a")}
  for _ in range(2):
    digests.check(tmp_path, expected, "")
  (tmp_path / "a").write_bytes(b"2")
  with pytest.raises(reading.UnreadableError):
    digests.check(tmp_path, expected, "")


# These parse texts that are not files, or records of the user's data. They have
# their own messages.
_PARSES = {
  *("storage/reading.py", "storage/digests.py", "contract.py"),
  *("batches/masking.py", "data/tokenizer.py"),
  *("hosts/member.py", "hosts/links.py"),
  *("lock.py", "data/shards/partition.py", "retrieval/line_vectors.py"),
  "retrieval/vector_writer.py",
  *("corpora/nq.py", "corpora/wikipedia.py", "data/sources/table_rows.py"),
}


def test_json_files_are_read_in_one_place():
  for path in sorted(PACKAGE.rglob("*.py")):
    name = path.relative_to(PACKAGE).as_posix()
    calls = {
      ast.unparse(node.func)
      for node in ast.walk(ast.parse(path.read_text("utf-8")))
      if isinstance(node, ast.Call)
    }
    assert "json.load" not in calls, name
    if name not in _PARSES:
      assert "json.loads" not in calls, f"{name}: use reading.read_json"


@pytest.mark.parametrize(
  "line", [b'{"step": 2', b"\xff", b"[]", b'{"kind": "train"}', b"[" * 5000]
)
def test_a_damaged_line_is_named(line, tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
  with pytest.raises(ValueError, match=r"metrics\.jsonl:2") as error:
    reading.read_json_lines(path, cut=True)
  assert "\n" not in str(error.value)
