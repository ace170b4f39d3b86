"""Each shared case is read rightly, or refused with its file and line.

../shared/cases/README.md says what is right for each case.
"""

import csv
import json
import pathlib

import numpy as np
import pytest

import mlir_jax
from mlir_jax import contract
from mlir_jax.data import collections, preparation, records, store_writer
from mlir_jax.data import tokenizer as tokenizer_lib
from mlir_jax.evals import measures as measures_lib


@pytest.fixture
def cases(shared) -> pathlib.Path:
  if not (shared / "cases").is_dir():
    pytest.skip("the cases (../shared/cases) are not here")
  return shared / "cases"


def load(folder, policy="error", require_pairs=False):
  """Returns a folder's collection, and the counter of its bad records."""
  bad = records.BadRecords(policy)
  loaded = collections.load(
    "folder", str(folder), bad, require_pairs=require_pairs
  )
  return loaded, bad


def read_all(folder):
  """Reads all streams of a folder; returns its tests."""
  loaded, _ = load(folder)
  for stream in (loaded.retrieval, loaded.parallel, loaded.monolingual):
    list(stream())
  return loaded.tests()


def build(folder, tmp_path, policy="error", tokenizer=None, prefix=""):
  """Builds the token store of a folder; None makes a tokenizer of its own."""
  loaded, bad = load(folder, policy)
  tokenizer = tokenizer or tokenizer_lib.train(
    preparation.training_texts(loaded), 300
  )
  return store_writer.build(
    tmp_path / "store",
    loaded,
    contract.PartialContract(
      pooling="mean",
      normalize=True,
      title_joiner=" ",
      **dict.fromkeys(contract.ROLES, contract.PartialRole("", 64))
      | {"query": contract.PartialRole(prefix, 64)},
    ).complete(tokenizer),
    tokenizer,
    tokenizer_lib.pad_id(tokenizer),
    shuffle_parallel=False,
    seed=0,
    source="cases",
    bad_records=bad,
  )


def true_negatives(store):
  """Returns the questions' number, and each one's passages of others."""
  offsets = store.arrays["retrieval_positive_offsets"]
  positives = store.text_hashes(
    "passage", store.arrays["retrieval_positives"][offsets[:-1]]
  )
  return len(positives), (positives[:, None] != positives).sum(axis=1)


REFUSED = {
  "faults/subfolder": r"ir/part2",
  "faults/lfs_pointers": r"x\.(fi\.txt|en-de\.(en|de)) is a Git LFS pointer",
  "faults/lone_cr": r"(a|utf16)\.fi\.txt:1",
  "formats/flagembedding_string_neg": r"train\.jsonl:1: record 1, neg: is a s",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_case_is_refused_by_name(cases, name):
  with pytest.raises(ValueError, match=REFUSED[name]):
    read_all(cases / name)


def test_every_case_has_a_test(cases):
  found = {
    str(path.relative_to(cases))
    for folder in ("faults", "formats")
    for path in (cases / folder).iterdir()
  }
  assert found == REFUSED.keys() | {
    "faults/bad_negatives",
    "faults/blank_last_line",
    "faults/eval",
    "faults/full_width_twins",
    "faults/id_the_same_everywhere",
    "faults/ids_numbered_per_file",
    "faults/invisible",
    "faults/model_that_runs_code",
    "formats/beir",
    "formats/dpr",
    "formats/flagembedding",
    "formats/language_codes",
    "formats/leipzig",
    "formats/mr_tydi_release",
    "formats/opus",
    "formats/sentence_transformers",
    "formats/sentence_transformers_csv",
    "formats/tevatron",
    "formats/tevatron_by_id",
    "formats/wikimatrix",
  }


def test_equal_pairs_make_equal_stores_in_any_format(cases, tmp_path):
  loaded, _ = load(cases / "formats/dpr")
  tokenizer = tokenizer_lib.train(preparation.training_texts(loaded), 300)
  prompt = "Find the country:"

  def arrays(folder, prefix=""):
    name = f"{folder.parent.name}{folder.name}{prefix}"
    store = build(folder, tmp_path / name, tokenizer=tokenizer, prefix=prefix)
    assert store.rows("retrieval")
    return {
      array: about["sha256"] for array, about in store.meta["arrays"].items()
    }

  with_titles = arrays(cases / "formats/dpr")
  for name in ("tevatron", "tevatron_by_id"):
    assert arrays(cases / "formats" / name) == with_titles

  # FlagEmbedding's records, without titles, as columns.
  rows = [
    json.loads(line)
    for line in (cases / "formats/flagembedding/ir/train.jsonl").open()
  ]
  folder = tmp_path / "columns/ir"
  folder.mkdir(parents=True)
  with (folder / "train.csv").open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(("anchor", "positive", "negative"))
    writer.writerows((r["query"], r["pos"][0], r["neg"][0]) for r in rows)
  without_titles = arrays(cases / "formats/flagembedding", prompt)
  columns = arrays(folder.parent, prompt)
  # Only FlagEmbedding's records have the scores of a teacher.
  scores = {"retrieval_positive_scores", "retrieval_negative_scores"}
  assert without_titles.keys() - columns.keys() == scores
  assert columns.items() <= without_titles.items()
  assert without_titles != with_titles
  # A prompt takes the place of the prefix, and nothing else changes.
  assert arrays(cases / "formats/flagembedding") == without_titles
  with pytest.raises(
    records.RecordError, match=r"train\.jsonl:1: record 1, pro"
  ):
    arrays(cases / "formats/flagembedding", "query: ")


def test_an_id_does_not_identify_a_text(cases, tmp_path):
  folder = cases / "faults/id_the_same_everywhere"
  with pytest.raises(records.RecordError, match=r"record 1\b.*") as error:
    build(folder, tmp_path / "error")
  assert str(error.value).count("train.json") == 2
  store = build(folder, tmp_path / "skip", "skip")
  rows, negatives = true_negatives(store)
  assert rows == 16
  assert (negatives == 15).all()
  # One of positives, one of hard negatives.
  assert store.dropped["passage ids that have two texts"] == 2
  store = build(cases / "faults/ids_numbered_per_file", tmp_path / "per_file")
  rows, negatives = true_negatives(store)
  assert rows == 16
  assert (negatives == 15).all()


def test_a_bad_negative_costs_itself_alone(cases, tmp_path):
  store = build(cases / "faults/bad_negatives", tmp_path)
  assert store.rows("retrieval") == 16
  dropped = (
    store.dropped["hard negatives without text"],
    store.dropped["hard negatives that are positives"],
  )
  assert min(dropped) > 0
  assert sum(dropped) + len(store.arrays["retrieval_negatives"]) == 20


def test_twins_are_one_text(cases, tmp_path):
  store = build(cases / "faults/full_width_twins", tmp_path)
  rows, negatives = true_negatives(store)
  assert rows == 32
  assert (negatives == 30).all()  # All but itself and its twin.
  queries = store.text_hashes("query", store.arrays["retrieval_queries"])
  assert len(np.unique(queries)) == 16


def test_lines_without_a_visible_character_are_blank(cases):
  loaded, _ = load(cases / "faults/blank_last_line")
  assert len(list(loaded.retrieval())) == len(
    list(load(cases / "formats/dpr")[0].retrieval())
  )
  loaded, _ = load(cases / "faults/invisible", "skip")
  assert [r.text for r in loaded.monolingual()] == ["yksi", "kaksi"]


@pytest.mark.parametrize(
  "name", ["judged_but_missing", "query_without_judgement", "blank_lines"]
)
def test_judgements_are_as_trec_eval_has_them(cases, name):
  (test,) = read_all(cases / "faults/eval" / name)
  # Each query finds all passages of the corpus, judged ones first.
  run = {
    query: {
      passage.passage_id: float(passage.passage_id in test.qrels.get(query, {}))
      for passage in test.passages
    }
    for query in test.queries
  }
  values = measures_lib.per_query(measures_lib.DEFAULT, test.qrels, run)
  measures = measures_lib.means(measures_lib.DEFAULT, values)
  found = {
    "judged_but_missing": {"mrr@100": 1.0, "r@100": (1 + 1 / 2) / 2},
    "query_without_judgement": {"mrr@100": 1.0, "r@100": 1.0},
    "blank_lines": {"mrr@100": 1.0, "r@100": 1.0},
  }[name]
  assert {key: measures[key] for key in found} == pytest.approx(found)
  assert len(test.queries) == (1 if name == "blank_lines" else 2)


def test_headers_and_titles_are_recognised(cases):
  (test,) = read_all(cases / "faults/eval/tsv_header")
  assert test.qrels == {"q0": {"p0": 1}}
  (test,) = read_all(cases / "faults/eval/crlf_title")
  assert test.passages[0].title == "Norway"
  assert test.passages[0].text.startswith("Norway is a country.")


def test_codes_numbers_and_companions(cases):
  loaded, _ = load(cases / "formats/language_codes")
  assert sorted(r.language for r in loaded.monolingual()) == [
    *("en", "es", "sr", "zh")
  ]
  loaded, _ = load(cases / "formats/leipzig")
  assert not any(r.text[0].isdigit() for r in loaded.monolingual())
  loaded, _ = load(cases / "formats/opus")
  assert len(list(loaded.parallel())) == 2
  notes = " ".join(loaded.notes())
  for companion in ("GNOME.en-zh_CN.ids", "README", "LICENSE"):
    assert companion in notes


def test_released_collections_train_and_evaluate(cases):
  for name, language, pairs, grade in (
    ("beir", "en", 12, 2),
    ("mr_tydi_release", "ar", 8, 1),
  ):
    loaded, _ = load(cases / "formats" / name, require_pairs=True)
    read = list(loaded.retrieval())
    assert [pair.language for pair in read] == [language] * pairs
    (test,) = loaded.tests()
    assert (test.language, len(test.passages)) == (language, 16)
    assert [*test.qrels] == [*test.queries] and len(test.queries) == 4
    for relevances in test.qrels.values():
      assert list(relevances.values()) == [grade]


def test_a_low_margin_is_cut_from_wikimatrix(cases):
  loaded, bad = load(cases / "formats/wikimatrix")
  assert [pair.target for pair in loaded.parallel()] == [
    *("Oslo is in Norway.", "Lima is a city.")
  ]
  ((count, _),) = bad.removed.values()
  assert count == 1


def test_a_models_code_does_not_run(cases, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match="evil"):
    mlir_jax.load(str(cases / "faults/model_that_runs_code"))
  assert not list(tmp_path.rglob("EXECUTED"))
