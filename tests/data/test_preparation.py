"""Preparing a run's data: once, whole, and only from the same files."""

import shutil

import pytest
import tiny

from mlir_jax.data import preparation


def test_data_are_prepared_once(tmp_path):
  root = tiny.write_folder(tmp_path / "data")
  c = tiny.make_config(root)
  first = preparation.prepare(c, str(tmp_path / "run"))
  again = preparation.prepare(c, str(tmp_path / "run"))
  assert again.store.fingerprint == first.store.fingerprint
  assert again.contract == first.contract
  assert [test.split for test in first.tests].count("dev") == 1


def test_what_a_kill_left_is_no_tokenizer_and_no_store(tmp_path):
  c = tiny.make_config(tiny.write_folder(tmp_path / "data"))
  run = tmp_path / "run"
  (run / "tokenizer").mkdir(parents=True)
  (run / "tokenizer/tokenizer.json.tmp").write_text("{")
  (run / "tokens.tmp-1234abcd").mkdir()
  prepared = preparation.prepare(c, str(run))
  assert prepared.store.rows("retrieval") == 120
  assert not (run / "tokens.tmp-1234abcd").exists()


def test_changed_files_are_refused(tmp_path):
  root = tiny.write_folder(tmp_path / "data")
  c = tiny.make_config(root)
  preparation.prepare(c, str(tmp_path / "run"))
  path = root / "mono/made.fi.txt"
  text = path.read_text()
  path.write_text(text.replace("e", "o"))  # As many bytes as before.
  with pytest.raises(ValueError, match=r"files under data\.root are not those"):
    preparation.prepare(c, str(tmp_path / "run"))
  path.write_text(text)
  moved = tmp_path / "moved"
  shutil.move(root, moved)
  c.data.root = str(moved)  # The same files elsewhere are the same data.
  preparation.prepare(c, str(tmp_path / "run"))


def test_skipped_records_are_shown_at_every_start(tmp_path, capsys):
  root = tiny.write_folder(tmp_path / "data")
  with open(root / "eval/de/topic.test.tsv", "a") as file:
    file.write("q99\t\n")
  with open(root / "parallel/made.en-de.de", "a") as file:
    file.write("\n")
  with open(root / "parallel/made.en-de.en", "a") as file:
    file.write("a sentence\n")
  c = tiny.make_config(root)
  with pytest.raises(ValueError, match=r"made\.en-de\.de:121: "):
    preparation.prepare(c, str(tmp_path / "run"))
  c.data.on_bad_record = "skip"
  for _ in range(2):
    capsys.readouterr()
    preparation.prepare(c, str(tmp_path / "run"))
    output = capsys.readouterr().out
    assert "bad training records skipped: 1" in output
    assert "bad test records skipped: 1" in output


def test_another_experiment_in_the_same_folder_is_refused(tmp_path):
  c = tiny.make_config(tiny.write_folder(tmp_path / "data"))
  preparation.prepare(c, str(tmp_path / "run"))
  c.encoding.passage.max_length = 12
  with pytest.raises(
    ValueError, match=r"config\.encoding\.passage\.max_length: 12 here, 16"
  ):
    preparation.prepare(c, str(tmp_path / "run"))
