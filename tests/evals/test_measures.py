"""Measures equal those of trec_eval to the last digit, under many names."""

import numpy as np
import pytest
import pytrec_eval

from mlir_jax.evals import measures

# Ours to trec_eval's.
NAMES = {
  "ndcg@10": "ndcg_cut_10",
  "r@100": "recall_100",
  "success@1": "success_1",
  "ndcg@20": "ndcg_cut_20",
  "ndcg": "ndcg",
  "ap": "map",
  "ap@30": "map_cut_30",
  "p@5": "P_5",
  "rprec": "Rprec",
  "bpref": "bpref",
  "mrr": "recip_rank",
}


def values_of(run, qrels, *names):
  chosen = measures.with_default(map(measures.parse, names))
  return measures.per_query(chosen, qrels, run)


def test_values_equal_trec_eval_with_ties_grades_and_gaps():
  """Grades from -2 to 3, missing passages, queries without results."""
  rng = np.random.default_rng(0)
  ids = [f"d{number}" for number in range(150)]
  run = {
    f"q{query}": {name: int(rng.integers(0, 9)) / 7 for name in ids}
    for query in range(40)
  }
  run["q1"] = dict(list(run["q1"].items())[:3])
  qrels = {
    query_id: {
      str(name): int(rng.integers(-2, 4))
      for name in rng.choice([*ids, "gone", "lost"], 12, replace=False)
    }
    for query_id in run
  }
  del run["q2"]
  run["q3"] = {}
  qrels["q4"] = {"d1": 0, "d2": -1}
  run["unjudged"] = {"d1": 1.0}
  # trec_eval reads numbers of 32 bits: 1 and 1 + 1e-9 are equal.
  run["q5"] |= {"d149": 1.0, "d148": 1.0 + 1e-9}
  found = values_of(run, qrels, "mrr@10", *NAMES)
  theirs = pytrec_eval.RelevanceEvaluator(
    qrels, {name.replace("_cut_", "_cut.") for name in NAMES.values()} | {"P"}
  ).evaluate(run)
  assert list(found) == list(qrels)
  order = [each.name for each in measures.DEFAULT]
  assert all(list(values)[:4] == order for values in found.values())
  for query_id, values in found.items():
    assert values.keys() == {"mrr@100", "mrr@10", *NAMES}
    expected = theirs.get(query_id, dict.fromkeys(NAMES.values(), 0.0))
    for ours, name in NAMES.items():
      assert values[ours] == expected[name], (query_id, ours)
    rank = round(1 / expected["recip_rank"]) if expected["recip_rank"] else 999
    for cut in (10, 100):
      assert values[f"mrr@{cut}"] == (1 / rank if rank <= cut else 0)
  means = measures.means(measures.DEFAULT, found)
  assert means["r@100"] == sum(v["r@100"] for v in found.values()) / len(qrels)
  # The cut matters here.
  assert any(values["mrr@10"] < values["mrr"] for values in found.values())


def test_ties_are_broken_by_id_also_at_the_cut():
  """Of 101 equal passages the one with the lowest id is cut off."""
  run = {"q": {f"d{number:03}": 1.0 for number in range(101)}}
  (last,) = values_of(run, {"q": {"d001": 1}}).values()
  assert last["mrr@100"] == 0.01 and last["r@100"] == 1
  (beyond,) = values_of(run, {"q": {"d000": 1}}).values()
  assert beyond["mrr@100"] == beyond["r@100"] == 0
  (first,) = values_of({"q": {"a": 1.0, "b": 1.0}}, {"q": {"b": 1}}).values()
  assert first["mrr@100"] == 1


def test_queries_without_results_count_0_and_without_judgements_nothing():
  qrels = {"q1": {"a": 1}, "q2": {"a": 1}, "q3": {"a": 1}, "q4": {}}
  values = values_of({"q1": {"a": 1.0}, "q2": {}, "q5": {"a": 1.0}}, qrels)
  assert list(values) == ["q1", "q2", "q3"]
  assert set(measures.means(measures.DEFAULT, values).values()) == {1 / 3}
  assert measures.means(measures.DEFAULT, values_of({}, {"q": {}})) == {}


@pytest.mark.parametrize(
  "text, name, title",
  [
    ("RR@100", "mrr@100", "MRR@100"),
    ("mrr@10", "mrr@10", "MRR@10"),
    ("Recall@100", "r@100", "R@100"),
    ("recall@50", "r@50", "R@50"),
    ("nDCG@20", "ndcg@20", "nDCG@20"),
    ("NDCG", "ndcg", "nDCG"),
    ("MAP", "ap", "AP"),
    ("hits@5", "success@5", "Success@5"),
    ("P(rel=2)@10", "p(rel=2)@10", "P(rel=2)@10"),
    ("judged@10", "judged@10", "Judged@10"),
  ],
)
def test_a_measure_has_one_name_in_results(text, name, title):
  found = measures.parse(text)
  assert (found.name, found.title) == (name, title)
  assert measures.parse(found.name) == measures.parse(found.title) == found


def test_a_list_of_names_may_hold_settings():
  found = measures.parse_list("nDCG@20, P(rel=2, judged_only=True)@10 ,AP", "")
  assert [each.name for each in found] == [
    "ndcg@20",
    "p(rel=2,judged_only=True)@10",
    "ap",
  ]
  assert measures.parse_list("", "") == []
  both = measures.with_default([*found, measures.parse("RR@100")])
  assert [each.name for each in both[:4]] == [
    "mrr@100",
    "ndcg@10",
    "r@100",
    "success@1",
  ]
  assert len(both) == 7


@pytest.mark.parametrize(
  "text, message",
  [
    ("nDGC@20", "there is no measure 'nDGC@20'"),
    ("ndcg@x", "there is no measure"),
    ("ndcg@10; import os", "there is no measure"),
    ("P", "is no measure: it needs cutoff, as in P@10"),
    ("AP(relevance=2)", "is no measure: unsupported params"),
    ("AP(2)", "is no measure: settings have names"),
    ("AP(rel=open('x'))", "is no measure: malformed"),
    ("NumRet", "is a count and has no mean"),
    ("alpha_nDCG@10", "needs another package: "),
  ],
)
def test_what_is_no_measure_is_refused(text, message):
  with pytest.raises(ValueError, match=f"^--measures: .*{message}"):
    measures.parse(text, "--measures")


def test_too_shallow_a_search_is_refused():
  deep = measures.with_default([measures.parse("R@1000")])
  with pytest.raises(ValueError, match="top_k is 100; R@1000 needs at least"):
    measures.check_depth(deep, 100, "eval.top_k")
  measures.check_depth(deep, 1000, "eval.top_k")
