"""Preparing a run's data: once, whole, and only from the same files."""

import functools
import shutil
import types

import hf_models
import pytest
import sentence_models
import tiny
from safetensors.numpy import load_file, save_file

from mlir_jax import prepare as prepare_lib
from mlir_jax.data import preparation, records
from mlir_jax.data import tokenizer as tokenizer_lib
from mlir_jax.models import pretrained
from mlir_jax.training import checks


def prepare(c, folder):
  check = functools.partial(checks.check_fits, c, folder)
  return preparation.prepare(c, folder, check)


def test_data_is_prepared_once(tmp_path):
  root = tiny.write_folder(tmp_path / "data")
  c = tiny.make_config(root)
  first = prepare(c, str(tmp_path / "run"))
  again = prepare(c, str(tmp_path / "run"))
  assert again.store.fingerprint == first.store.fingerprint
  assert again.contract == first.contract
  assert [test.split for test in first.tests].count("dev") == 1


def test_the_rest_of_a_killed_preparation_is_not_used(tmp_path):
  c = tiny.make_config(tiny.write_folder(tmp_path / "data"))
  run = tmp_path / "run"
  (run / "tokenizer").mkdir(parents=True)
  (run / "tokenizer/tokenizer.json.tmp").write_text("{")
  left = run / ".tokens.0123456789abcdef.tmp"
  left.mkdir()
  prepared = prepare(c, str(run))
  assert prepared.store.rows("retrieval") == 120
  assert not left.exists()


def test_changed_files_are_refused(tmp_path):
  root = tiny.write_folder(tmp_path / "data")
  c = tiny.make_config(root)
  prepare(c, str(tmp_path / "run"))
  path = root / "mono/made.fi.txt"
  text = path.read_text()
  path.write_text(text.replace("e", "o"))  # As many bytes as before.
  with pytest.raises(
    ValueError, match=rf"built: files under data\.root={root}\."
  ):
    prepare(c, str(tmp_path / "run"))
  path.write_text(text)
  moved = tmp_path / "moved"
  shutil.move(root, moved)
  c.data.root = str(moved)  # The same files in another folder: the same data.
  prepare(c, str(tmp_path / "run"))


def test_changed_data_sets_are_refused_by_name(tmp_path, monkeypatch):
  datasets = pytest.importorskip("datasets")
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
  c = tiny.make_config(tiny.write_folder(tmp_path / "data"))
  for name in ("one", "two"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "train.jsonl").write_text('{"text": "yksi"}\n')
    value = f"datasets:{tmp_path / name} stream=monolingual languages=fi"
    c.data.sets[name] = value
  prepare(c, str(tmp_path / "run"))
  prepare(c, str(tmp_path / "run"))
  (tmp_path / "two" / "train.jsonl").write_text('{"text": "kaksi"}\n')
  with pytest.raises(ValueError, match=r"built: data\.sets\.two\. Restore"):
    prepare(c, str(tmp_path / "run"))


def test_training_files_may_be_gone_after_they_were_prepared(tmp_path, capsys):
  root = tiny.write_folder(tmp_path / "data")
  c = tiny.make_config(root)
  first = prepare(c, str(tmp_path / "run"))
  moved = tmp_path / "moved"
  moved.mkdir()
  for name in ("ir", "parallel"):
    shutil.move(root / name, moved / name)
  capsys.readouterr()
  again = prepare(c, str(tmp_path / "run"))
  assert "training files are gone, 3 of 4 (" in capsys.readouterr().out
  assert again.store.fingerprint == first.store.fingerprint
  assert again.collection.groups == first.collection.groups
  assert len(again.tests) == len(first.tests)
  with pytest.raises(ValueError, match="files are gone"):
    list(again.collection.retrieval())
  with open(root / "mono/made.fi.txt", "a") as file:
    file.write("one more\n")
  with pytest.raises(ValueError, match=r"built: files under data\.root="):
    prepare(c, str(tmp_path / "run"))
  with pytest.raises(ValueError, match="there is no file in ir/"):
    prepare(c, str(tmp_path / "other"))


def test_a_file_that_changes_while_it_is_prepared_leaves_no_store(tmp_path):
  """A file of aligned lines shifts by a line after it was hashed."""
  c = tiny.make_config(tiny.write_folder(tmp_path / "data"))
  path = tmp_path / "data/parallel/made.en-de.de"
  first, *others = path.read_text().splitlines(keepends=True)

  def shift(tokenizer, contract):
    path.write_text("".join([*others, first]))

  with pytest.raises(records.RecordError, match=r"made\.en-de\.de has changed"):
    preparation.prepare(c, str(tmp_path / "run"), shift)
  assert not list((tmp_path / "run").glob("tokens*"))
  prepare(c, str(tmp_path / "run"))  # What is there now is prepared.


def test_skipped_records_are_shown_at_every_start(
  tmp_path, capsys, monkeypatch
):
  root = tiny.write_folder(tmp_path / "data")
  with open(root / "eval/de/topic.test.tsv", "a") as file:
    file.write("q99\t\n")
  with open(root / "eval/de/qrels.test.txt", "a") as file:
    file.write("q1 Q0 gone 1\n")
  (root / "LICENSE").write_text("CC0\n")
  with open(root / "parallel/made.en-de.de", "a") as file:
    file.write("\n")
  with open(root / "parallel/made.en-de.en", "a") as file:
    file.write("a sentence\n")
  c = tiny.make_config(root)
  with pytest.raises(ValueError, match=r"made\.en-de\.de:121: "):
    prepare(c, str(tmp_path / "run"))
  c.data.on_bad_record = "skip"
  flags = {
    "_CONFIG": c,
    "_WORKDIR": str(tmp_path / "run"),
    "_WORKERS": 1,
    "_RUNNER": "local",
  }
  for name, value in flags.items():
    flag = types.SimpleNamespace(value=value)
    monkeypatch.setattr(prepare_lib, name, flag, raising=False)
  for _ in range(2):
    capsys.readouterr()
    prepare_lib.main()
    output = capsys.readouterr().out
    assert "bad training records skipped: 1" in output
    assert "bad test records skipped: 1" in output
    assert output.count("not in the corpus count as not found: de 1 of") == 1
    assert "Not read: LICENSE" in output


def test_another_experiment_in_the_same_folder_is_refused(tmp_path):
  c = tiny.make_config(tiny.write_folder(tmp_path / "data"))
  prepare(c, str(tmp_path / "run"))
  c.encoding.passage.max_length = 12
  with pytest.raises(
    ValueError, match=r"passage\.max_length: 12 here, 16 there"
  ):
    prepare(c, str(tmp_path / "run"))


@pytest.mark.parametrize(
  ("field", "wrong", "right", "named"),
  [
    ("encoding.passage.max_length", 64, 16, r"passage\.max_length': 64"),
    ("model.num_heads", 3, 2, "num_heads, 3"),
  ],
)
def test_settings_that_cannot_be_trained_are_refused_and_can_be_mended(
  field, wrong, right, named, tmp_path
):
  c = tiny.make_config(tiny.write_folder(tmp_path / "data"))
  c.update_from_flattened_dict({field: wrong})
  with pytest.raises(ValueError, match=named):
    prepare(c, str(tmp_path / "run"))
  assert not (tmp_path / "run" / "tokens").exists()
  c.update_from_flattened_dict({field: right})
  prepare(c, str(tmp_path / "run"))


def test_a_backbone_that_cannot_be_read_is_refused_before_tokenizing(tmp_path):
  c = tiny.make_config(tiny.write_folder(tmp_path / "data"))
  folder = hf_models.random_model(tmp_path / "bert", "bert")
  tokenizer_lib.train(tiny.WORDS, 100).save(str(folder / "tokenizer.json"))
  c.model.pretrained = str(folder)
  file = folder / "model.safetensors"
  tensors = load_file(file)
  del tensors["encoder.layer.1.output.dense.bias"]
  save_file(tensors, file)
  with pytest.raises(ValueError, match=r"layer\.1\.output\.dense\.bias"):
    prepare(c, str(tmp_path / "run"))
  assert not (tmp_path / "run" / "tokens").exists()


def test_prepared_data_does_not_need_its_backbone_any_more(tmp_path):
  c = tiny.make_config(tiny.write_folder(tmp_path / "data"))
  folder = tmp_path / "sentences"
  sentence_models.save(folder)
  c.model.pretrained = str(folder)
  for role in ("query", "passage", "sentence"):
    c.encoding[role].max_length = None
  first = prepare(c, str(tmp_path / "run"))
  assert first.contract.query.prefix == sentence_models.PROMPTS["query"]
  assert first.contract.passage.max_length == sentence_models.LENGTH
  (tmp_path / "run" / "checkpoints" / "2").mkdir(parents=True)
  folder.rename(tmp_path / "gone")
  assert prepare(c, str(tmp_path / "run")).contract == first.contract
  c.encoding.query.prefix = "other: "
  with pytest.raises(ValueError, match=r"encoding\.query\.prefix"):
    prepare(c, str(tmp_path / "run"))


def test_a_lost_tokenizer_is_read_from_the_backbone_again(tmp_path):
  c = tiny.make_config(tiny.write_folder(tmp_path / "data"))
  sentence_models.save(tmp_path / "sentences")
  c.model.pretrained = str(tmp_path / "sentences")
  first = prepare(c, str(tmp_path / "run"))
  shutil.rmtree(tmp_path / "run" / "tokenizer")
  assert prepare(c, str(tmp_path / "run")).contract == first.contract


def test_a_hub_names_commit_is_kept_for_all_that_is_read_later(
  tmp_path, monkeypatch
):
  asked = []

  def download(name, revision, allow_patterns):
    asked.append(revision)
    folder = tmp_path / "snapshots" / "abc123"
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)

  monkeypatch.setattr(pretrained.huggingface_hub, "snapshot_download", download)
  c = tiny.make_config(tmp_path)
  c.model.pretrained, c.model.revision = "someone/bert", "main"
  for _ in range(2):
    preparation.fetch_backbone(c, str(tmp_path / "run"))
  assert asked == ["main", "abc123"]
