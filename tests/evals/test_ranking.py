"""Measures equal those of trec_eval, for the TREC runs that are written."""

import jax
import numpy as np
import pytest
import pytrec_eval

from mlir_jax import sharding
from mlir_jax.data import records
from mlir_jax.evals import measures, ranking
from mlir_jax.retrieval import runs


@pytest.fixture(params=[1, 8])
def mesh(request):
  return sharding.make_mesh(devices=jax.devices()[: request.param])


def one_hot(role, texts, titles=None):
  """Embeds "3" as the third unit vector, "3 5" as the sum of two."""
  vectors = np.zeros((len(texts), 8), "f4")
  for vector, text in zip(vectors, texts, strict=True):
    vector[[int(place) for place in text.split()]] = 1
  return vectors


def make_test(
  queries, passages, qrels, language="de", split="test", own_passages=()
):
  return records.RetrievalTest(
    language=language,
    split=split,
    passages=tuple(
      records.Passage(text, passage_id=name) for name, text in passages.items()
    ),
    queries=queries,
    qrels=qrels,
    own_passages=tuple(own_passages),
  )


def test_evaluate_names_its_values_and_measures_the_runs_it_writes(
  mesh, tmp_path
):
  tests = [
    make_test(
      {"q1": "1", "q2": "2", "q3": "3"},
      {"a": "1", "b": "1 2", "c": "3", "d": "2 3", "e": "3"},
      {"q1": {"a": 1}, "q2": {"b": 1}, "q3": {"e": 1}, "q4": {"a": 1}},
    ),
    make_test({"q1": "1"}, {"a": "1"}, {"q1": {"a": 1}}, "en", "dev"),
  ]
  results = dict(ranking.evaluate(one_hot, tests, mesh, trec_folder=tmp_path))
  assert results == pytest.approx(
    {
      # q1 finds b, a; q2 finds d, b; q3 finds e; q4 has no text.
      "test/de/mrr@100": (1 / 2 + 1 / 2 + 1 + 0) / 4,
      "test/de/ndcg@10": (2 / np.log2(3) + 1) / 4,
      "test/de/r@100": 3 / 4,
      "test/de/success@1": 1 / 4,
      "dev/en/mrr@100": 1,
      "dev/en/ndcg@10": 1,
      "dev/en/r@100": 1,
      "dev/en/success@1": 1,
    }
  )
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    "dev.en.trec",
    "test.de.trec",
  ]
  for test in tests:
    run = runs.read_run(tmp_path / f"{test.split}.{test.language}.trec")
    values = measures.per_query(measures.DEFAULT, test.qrels, run)
    for name, value in measures.means(measures.DEFAULT, values).items():
      assert results[f"{test.split}/{test.language}/{name}"] == value


def test_a_judged_passage_that_is_missing_counts_as_not_found(mesh):
  """beir#101: so does trec_eval, which has only the qrels and the run."""
  passages = {"a": "1", "b": "2", "c": "3"}
  qrels = {
    "q1": {"a": 1, "gone": 1},
    "q2": {"b": 1, "a": 0, "lost": 0},
    "q3": {"nowhere": 2},
    "q4": {"c": 1},
    "q5": {"b": 1, "c": 1},
  }
  queries = {"q1": "1", "q2": "2", "q3": "3", "q4": "3", "q5": "2 3"}
  test = make_test(queries | {"unjudged": "1"}, passages, qrels)
  run = {
    query_id: {
      passage_id: float(set(words.split()) >= set(text.split()))
      for passage_id, text in passages.items()
    }
    for query_id, words in queries.items()
  }
  theirs = pytrec_eval.RelevanceEvaluator(
    qrels, {"recip_rank", "recall.100", "ndcg_cut.10", "success.1"}
  ).evaluate(run)

  def mean(name):
    return np.mean([values[name] for values in theirs.values()])

  expected = {
    "test/de/mrr@100": mean("recip_rank"),
    "test/de/ndcg@10": mean("ndcg_cut_10"),
    "test/de/r@100": mean("recall_100"),
    "test/de/success@1": mean("success_1"),
  }
  assert expected["test/de/r@100"] == pytest.approx((0.5 + 1 + 0 + 1 + 1) / 5)
  assert dict(ranking.evaluate(one_hot, [test], mesh)) == pytest.approx(
    expected
  )


def test_a_query_without_judgements_is_in_the_run_but_not_in_means(
  mesh, tmp_path
):
  queries = {"q1": "1", "q2": "2", "q3": "2"}
  passages = {"a": "1", "b": "2"}
  judged = make_test(queries, passages, {"q1": {"a": 1}, "q3": {}})
  hidden = make_test(queries, passages, {}, "sw")
  results = dict(
    ranking.evaluate(one_hot, [judged, hidden], mesh, trec_folder=tmp_path)
  )
  assert set(results) == {f"test/de/{each.name}" for each in measures.DEFAULT}
  assert set(results.values()) == {1.0}
  for language in ("de", "sw"):
    run = runs.read_run(tmp_path / f"test.{language}.trec")
    assert {query: set(found) for query, found in run.items()} == {
      query: {"a", "b"} for query in queries
    }
  assert ranking.describe_unfindable([judged, hidden]) == [
    "Queries without judgements are not in the means: de 2 of 3.",
    "Tests without any judgement have TREC runs, but no values: sw.",
  ]


def test_missing_passages_and_queries_without_judgements_are_described():
  passages = {"a": "1", "b": "2"}
  tests = [
    make_test({"q1": "1"}, passages, {"q1": {"a": 1, "b": 0}}),
    make_test(
      {"q1": "1", "q2": "2"},
      passages,
      {"q1": {"a": 1, "gone": 1, "lost": 0}, "q3": {"b": 1}},
      "en",
      "dev",
    ),
  ]
  assert ranking.describe_unfindable(tests[:1]) == []
  assert ranking.describe_unfindable(tests) == [
    "Relevant passages that are not in the corpus count as not found:"
    " en (dev) 1 of 3.",
    "Queries without judgements are not in the means: en (dev) 1 of 2.",
  ]


def test_passages_are_encoded_with_their_titles_in_their_role():
  calls = []

  def embed(role, texts, titles=None):
    calls.append((role, list(texts), titles and list(titles)))
    return one_hot(role, texts)

  test = records.RetrievalTest(
    *("de", "test", (records.Passage("1", "title", "a"),)),
    *({"q": "2"}, {"q": {"a": 1}}),
  )
  list(ranking.evaluate(embed, [test], sharding.make_mesh()))
  assert ("passage", ["1"], ["title"]) in calls
  assert ("query", ["2"], None) in calls and len(calls) == 2


def test_a_query_does_not_find_itself(mesh, tmp_path):
  """beir#91: otherwise a query in the corpus is its own best answer."""
  passages = {f"p{number:03}": "1" for number in range(101)} | {"q": "1"}
  test = make_test(
    {"q": "1", "r": "1"}, passages, {"q": {"p100": 1}}, own_passages=["q"]
  )
  results = dict(ranking.evaluate(one_hot, [test], mesh, trec_folder=tmp_path))
  assert results["test/de/mrr@100"] == 1
  run = runs.read_run(tmp_path / "test.de.trec")
  assert "q" not in run["q"] and len(run["q"]) == 100
  assert "q" in run["r"] and len(run["r"]) == 100


def test_a_judged_passage_with_the_querys_id_counts(mesh):
  test = make_test(
    {"7": "1"}, {"7": "1", "8": "2"}, {"7": {"7": 1}}, own_passages=["7"]
  )
  results = dict(ranking.evaluate(one_hot, [test], mesh))
  assert results["test/de/mrr@100"] == 1


def test_another_passage_with_the_querys_id_is_found():
  """MS MARCO numbers queries and passages alike."""
  test = make_test({"7": "1"}, {"7": "1", "6": "1"}, {"7": {"6": 1}})
  results = dict(ranking.evaluate(one_hot, [test], sharding.make_mesh()))
  assert results["test/de/mrr@100"] == 0.5


def test_a_judged_passage_that_is_missing_was_not_found():
  """beir#101; a query without judgements is not in the means."""
  test = make_test(
    {"a": "1", "b": "2", "c": "3"},
    {"p": "1", "q": "2"},
    {"a": {"p": 1}, "b": {"q": 1, "gone": 1}},
  )
  results = dict(ranking.evaluate(one_hot, [test], sharding.make_mesh()))
  assert results["test/de/r@100"] == 0.75
  assert results["test/de/mrr@100"] == 1


def test_too_shallow_a_search_is_refused():
  with pytest.raises(ValueError, match=r"eval\.top_k is 10"):
    list(ranking.evaluate(one_hot, [], sharding.make_mesh(), top_k=10))


def test_an_equal_corpus_is_encoded_once_for_all_its_tests():
  asked = []

  def embed(role, texts, titles=None):
    asked.append(role)
    return np.eye(len(texts), 8, dtype=np.float32)

  def corpus(text):
    return tuple(
      records.Passage(f"{text} {n}", passage_id=f"p{n}") for n in range(3)
    )

  tests = [
    records.RetrievalTest(
      language, split, corpus(text), {"q": "text"}, {"q": {"p0": 1}}
    )
    for language, split, text in (
      ("en", "dev", "text"),
      ("de", "test", "Text"),
      ("en", "test", "text"),  # Not the same object.
    )
  ]
  mesh = sharding.make_mesh()
  results = dict(ranking.evaluate(embed, tests, mesh))
  assert asked == ["passage", "query", "query", "passage", "query"]
  assert [name for name in results if name.endswith("mrr@100")] == [
    "dev/en/mrr@100",
    "test/de/mrr@100",
    "test/en/mrr@100",
  ]
