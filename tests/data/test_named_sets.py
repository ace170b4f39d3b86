"""A data set that a library finds by name is a part of the collection."""

import json
import os
import subprocess
import sys

import pytest
import source_files

from mlir_jax.data import collections, records

PAIRS = [{"query": f"swali {i}", "positive": f"jibu {i}"} for i in range(3)]
TRANSLATIONS = [
  {"translation": {"en": f"house {i}", "de": f"Haus {i}"}} for i in range(3)
]


def _load(sets, policy="error", name="sets", **settings):
  bad = records.BadRecords(policy)
  loaded = collections.load(
    name, bad_records=bad, sets=sets, require_pairs=False, **settings
  )
  return loaded, bad


def _write_jsonl(folder, rows):
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  source_files.write(folder / "train.jsonl", lines)
  return folder


@pytest.fixture
def offline(tmp_path, monkeypatch):
  """Hugging Face and TFDS keep their copies in the test's folder."""
  datasets = pytest.importorskip("datasets")
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
  monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
  datasets.disable_progress_bars()


def test_hugging_face_data_sets_are_streams(tmp_path, offline):
  import datasets

  pairs = _write_jsonl(tmp_path / "pairs", PAIRS)
  saved = tmp_path / "saved"
  datasets.Dataset.from_list(TRANSLATIONS).save_to_disk(saved)
  text = _write_jsonl(
    tmp_path / "text", [{"text": "yksi"}, {"text": " "}, {"text": "kaksi"}]
  )
  loaded, bad = _load(
    {
      "a": f"datasets:{pairs} stream=retrieval languages=swh",
      "b": f"datasets:{saved} stream=parallel languages=de-en",
      "c": f"datasets:{text} stream=monolingual languages=fi split=train",
    },
    "skip",
  )
  assert [
    (pair.question, pair.positives[0].text, pair.language)
    for pair in loaded.retrieval()
  ] == [(f"swali {i}", f"jibu {i}", "sw") for i in range(3)]
  assert list(loaded.parallel())[2] == records.ParallelRecord(
    "Haus 2", "house 2", "de", "en"
  )
  assert [r.text for r in loaded.monolingual()] == ["yksi", "kaksi"]
  assert [
    {record.source_name for record in stream()}
    for stream in (loaded.retrieval, loaded.parallel, loaded.monolingual)
  ] == [{"a"}, {"b"}, {"c"}]
  assert bad.count == 2  # One in each of two passes.
  assert bad.first[0].startswith(f"datasets:{text}:2: record 2, text: is empty")
  notes = "\n".join(loaded.notes())
  assert f"datasets:{saved}: translations with the fields translation.de" in (
    notes
  )
  assert loaded.groups == {
    "en": "English",
    "sw": "without parallel text",
    "de": "with parallel text",
    "fi": "without parallel text",
  }


def test_the_fingerprint_is_that_of_the_records(tmp_path, offline, monkeypatch):
  def fingerprint(place, rows):
    _write_jsonl(tmp_path / place / "mine", rows)
    monkeypatch.chdir(tmp_path / place)
    sets = {"b": "datasets:mine stream=parallel languages=de-en"}
    return _load(sets)[0].fingerprint()

  first = fingerprint("here", TRANSLATIONS)
  assert fingerprint("there", TRANSLATIONS) == first
  assert fingerprint("other", TRANSLATIONS[:2]) != first


def test_sets_are_added_to_a_collection(tmp_path, offline):
  pairs = _write_jsonl(tmp_path / "pairs", PAIRS)
  alone = collections.load("cldr")
  loaded, _ = _load({"a": f"datasets:{pairs} stream=retrieval"}, name="cldr")
  assert len(list(loaded.retrieval())) == len(list(alone.retrieval())) + 3
  assert loaded.fingerprint() != alone.fingerprint()
  assert loaded.groups == alone.groups


def test_a_record_that_says_another_language_is_bad(tmp_path, offline):
  rows = [{"text": "yksi", "language": "fin"}, {"text": "jeden", "lang": "cs"}]
  folder = _write_jsonl(tmp_path / "text", rows)
  loaded, _ = _load({"a": f"datasets:{folder} stream=monolingual languages=fi"})
  with pytest.raises(records.RecordError, match=r":2: record 2, lang: says"):
    list(loaded.monolingual())


@pytest.mark.slow
def test_tfds_data_sets_are_streams(tmp_path):
  """In a process of its own, without tensorflow."""
  code = """
import sys
import numpy as np
import tensorflow_datasets as tfds
from mlir_jax.data import collections, records

class Tiny(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = {"query": tfds.features.Text(), "number": tfds.features.Scalar(
        np.int32), "positive": tfds.features.Text()}
    return tfds.core.DatasetInfo(builder=self,
        features=tfds.features.FeaturesDict(features), disable_shuffling=True)

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i in range(3):
      yield i, {"query": f"swäli {i}", "positive": f"jibu {i}", "number": i}

for name in ("tiny", sys.argv[1] + "/tiny/1.0.0"):
  sets = {"t": f"tfds:{name} stream=retrieval languages=sw"}
  loaded = collections.load("sets", bad_records=records.BadRecords(), sets=sets)
  pairs = [(p.question, p.positives[0].text, p.language)
           for p in loaded.retrieval()]
  assert pairs == [(f"swäli {i}", f"jibu {i}", "sw") for i in range(3)], pairs
  assert "number" in " ".join(loaded.notes()), loaded.notes()
sets = {"t": "tfds:no_such_set stream=retrieval"}
loaded = collections.load("sets", sets=sets)
try:
  list(loaded.retrieval())
except ValueError as error:
  assert "data.sets.t: tfds:no_such_set: " in str(error), error
else:
  raise AssertionError
assert "tensorflow" not in sys.modules
"""
  script = source_files.write(tmp_path / "tiny_builder.py", code)
  done = subprocess.run(
    [sys.executable, str(script), str(tmp_path)],
    env=os.environ | {"TFDS_DATA_DIR": str(tmp_path)},
    capture_output=True,
    text=True,
  )
  assert not done.returncode, done.stderr


def test_an_id_of_ir_datasets_is_a_test_or_pairs(tmp_path):
  ir_datasets = pytest.importorskip("ir_datasets")
  for name, text in {
    "docs": "d1\tNorway. Oslo.\nd2\tPeru. Lima.\nd2\tagain\n",
    "queries": "q1\tmji mkuu?\nq2\tmwingine?\nq3\tmto?\n",
    "qrels": "q1 0 d1 1\nq1 0 d2 0\nq9 0 d1 1\nq3 0 gone 1\n",
  }.items():
    (tmp_path / name).write_text(text)
  made = ir_datasets.create_dataset(
    *(str(tmp_path / name) for name in ("docs", "queries", "qrels"))
  )
  name = f"made-{tmp_path.name}"
  ir_datasets.registry.register(name, made)
  target = f"ir_datasets:{name}"
  sets = {
    "t": f"{target} languages=swa",
    "p": f"{target} stream=retrieval languages=sw",
  }
  with pytest.raises(records.RecordError, match=r"docs:3: docs id: 'd2' is in"):
    _load(sets)[0].tests()
  loaded, bad = _load(sets, "skip")
  (test,) = loaded.tests()
  assert (test.language, test.split) == ("sw", "test")
  assert [p.text for p in test.passages] == ["Norway. Oslo.", "Peru. Lima."]
  assert test.qrels == {"q1": {"d1": 1, "d2": 0}, "q3": {"gone": 1}}
  assert set(test.queries) == {"q1", "q2", "q3"}
  assert bad.drain()["count"] == 1
  (pair,) = loaded.retrieval()
  assert (pair.question, pair.language) == ("mji mkuu?", "sw")
  assert [p.passage_id for p in pair.positives] == ["d1"]
  assert [p.passage_id for p in pair.hard_negatives] == ["d2"]
  removed = bad.drain()["removed"]
  assert {what: count for what, (count, _) in removed.items()} == {
    "judgements of passages that are not there": 1,
    "queries without a relevant passage": 2,
  }
  for value, problem in (
    (target, "does not say one language"),
    ("ir_datasets:no/such", "ir_datasets has no no/such"),
    (f"{target} split=dev languages=sw", "eval.selection does not name"),
  ):
    with pytest.raises(ValueError, match=f"^data.sets.x: .*{problem}"):
      _load({"x": value})
  with pytest.raises(ValueError, match="are both a test set in 'sw'"):
    _load(sets | {"u": sets["t"]}, "skip")[0].tests()


@pytest.mark.parametrize(
  "value, problem",
  [
    ("mr-tydi/sw/test", "it must be LIBRARY:NAME KEY=VALUE"),
    ("datasets:", "it must be LIBRARY:NAME KEY=VALUE"),
    ("hub:a/b stream=retrieval", "it must be LIBRARY:NAME KEY=VALUE"),
    ("datasets:a/b", "stream is ''; give stream="),
    ("datasets:a/b stream=test", "stream is 'test'"),
    ("ir_datasets:a stream=parallel languages=en-de", "stream is 'parallel'"),
    ("datasets:a stream=retrieval streem=x", "'streem=x' is not KEY=VALUE"),
    ("datasets:a stream=retrieval stream=parallel", "that is there once"),
    ("datasets:a stream=parallel languages=en", "give languages=en-de"),
    ("datasets:a stream=parallel languages=en-eng", "are one language"),
    ("datasets:a stream=monolingual languages=Finnish", "should be codes"),
    ("datasets:a stream=monolingual", "give languages=fi"),
    ("tfds:a stream=retrieval config=b", "config= is for datasets"),
    ("ir_datasets:a split=validation", "split is 'validation'"),
  ],
)
def test_a_setting_that_cannot_be_used_is_refused(value, problem):
  with pytest.raises(ValueError, match=f"^data.sets.mine.*{problem}"):
    _load({"mine": value})
  with pytest.raises(ValueError, match=f"^--set=mine.*{problem}"):
    _load({"mine": value}, prefix="--")


def test_a_library_that_is_missing_or_fails_is_named(tmp_path, offline):
  broken = _write_jsonl(tmp_path / "broken", [])
  loaded, _ = _load({"a": f"datasets:{broken} stream=retrieval split=none"})
  with pytest.raises(ValueError, match=r"^data\.sets\.a: datasets:.*broken: "):
    list(loaded.retrieval())
  from mlir_jax.data.sources.named import setting

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(setting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'mlir_jax\[datasets\]'"):
      _load({"a": "datasets:a/b stream=retrieval"})


def test_sets_without_pairs_do_not_train_a_retriever():
  with pytest.raises(ValueError, match="no data set has question-passage"):
    collections.load("sets")
  with pytest.raises(ValueError, match=r"the collection 'sets' reads no files"):
    collections.load("sets", "folder", require_pairs=False)
