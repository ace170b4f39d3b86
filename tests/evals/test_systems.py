"""Every system makes the run of a test, and a user's is checked."""

import re

import numpy as np
import pytest

from mlir_jax.data import records
from mlir_jax.evals import fusion, measures, own_systems, ranking, systems
from mlir_jax.retrieval import bm25, runs, terms

PASSAGES = tuple(
  records.Passage(text, title, passage_id=name)
  for name, title, text in (
    ("a", "River", "a long river"),
    ("b", "", "a river stone"),
    ("c", "", "stone by stone"),
    ("d", "", "a river stone"),
    ("e", "", "nothing of it"),
  )
)


def make_test(language="en", split="test", passages=PASSAGES, **changes):
  return records.RetrievalTest(
    **{
      "language": language,
      "split": split,
      "passages": passages,
      "queries": {"q1": "river", "q2": "Stone river?", "q3": "unknown"},
      "qrels": {"q1": {"a": 1}, "q2": {"d": 1}},
    }
    | changes
  )


def test_bm25_ranks_the_passages_that_share_a_word_with_ties_by_id():
  run = systems.Bm25()(make_test(), 3)
  index = bm25.Bm25([f"{p.title} {p.text}" for p in PASSAGES], terms.words)
  for query_id, query in make_test().queries.items():
    scores = dict(zip("abcde", index.scores(query).tolist(), strict=True))
    best = runs.ranked({name: s for name, s in scores.items() if s > 0})[:3]
    assert run[query_id] == dict(best)
  assert list(run["q2"])[:2] == ["d", "b"] and run["q3"] == {}
  assert systems.Bm25()(make_test(), 1)["q2"].keys() == {"d"}


def test_a_corpus_is_counted_again_if_it_is_another_one():
  system = systems.Bm25()
  before = system(make_test(), 5)
  assert system(make_test(passages=PASSAGES[:2]), 5)["q1"].keys() == {"a", "b"}
  assert system(make_test(), 5) == before


def test_trec_runs_are_read_for_the_tests_that_have_one(tmp_path):
  tests = [make_test(), make_test("de")]
  run = {"q1": {"a": 2.0, "b": 1.0}, "other": {"c": 1.0}}
  runs.write_run(tmp_path / "runs/test.de.trec", run)
  folder = systems.TrecRuns(str(tmp_path / "runs"), tests)
  assert folder(tests[0], 5) is None
  assert folder(tests[1], 5) == run
  # Queries that the test does not have are left out, missing ones are empty.
  assert ranking.search(folder, tests[1], 1) == {
    "q1": {"a": 2.0},
    "q2": {},
    "q3": {},
  }
  values = ranking.run_system(folder, tests, measures.DEFAULT, top_k=100)
  assert values["test/en"] == {} and list(values["test/de"]) == ["q1", "q2"]
  file = systems.TrecRuns(str(tmp_path / "runs/test.de.trec"), tests)
  assert file(tests[0], 5) is None and file(tests[1], 5) == run
  named = tmp_path / "mine.txt"
  named.write_bytes((tmp_path / "runs/test.de.trec").read_bytes())
  assert systems.TrecRuns(str(named), tests[:1])(tests[0], 5) == run
  with pytest.raises(ValueError, match=r"2 tests, so the name .* test\.en\.tr"):
    systems.TrecRuns(str(named), tests)
  with pytest.raises(ValueError, match="holds the TREC run of no test"):
    systems.TrecRuns(str(tmp_path), tests)
  with pytest.raises(ValueError, match="there is no such file"):
    systems.TrecRuns(str(tmp_path / "gone"), tests)
  runs.write_run(tmp_path / "runs/test.en.trec", {"x": {"a": 1.0}})
  with pytest.raises(ValueError, match="holds no query of test/en"):
    folder(tests[0], 5)


def fixed(run):
  return lambda test, k: run.get(f"{test.split}/{test.language}")


FIRST = {"q1": {"b": 3.0, "a": 1.0, "c": 0.0}, "q2": {"b": 2.0, "d": 1.0}}
SECOND = {"q1": {"a": 9.0, "b": 1.0}, "q2": {"d": 5.0, "b": 1.0, "c": 0.0}}


def test_a_fusion_has_a_run_where_all_its_parts_have_one():
  parts = fixed({"test/en": FIRST}), fixed({"test/en": SECOND})
  fused = systems.Fused(parts)
  assert fused(make_test(), 5) == fusion.reciprocal_ranks([FIRST, SECOND])
  assert fused(make_test("de"), 5) is None
  assert systems.Fused([parts[0], fixed({})])(make_test(), 5) is None


def test_english_dev_chooses_the_weight_of_all_languages():
  dev = {"dev/en": SECOND, "test/de": FIRST, "dev/de": FIRST}
  other = {"dev/en": FIRST, "test/de": SECOND, "dev/de": SECOND}
  tests = [make_test("en", "dev"), make_test("de", "dev"), make_test("de")]
  fused = systems.MinMax(fixed(dev), fixed(other), tests, 100)
  # From 5/9 on, both queries of English dev find their passage first.
  assert fused.weights == {"en": 0.6} and fused.weight("de") == 0.6
  assert "in all languages: English dev chose it" in fused.describe("x")
  assert fused(tests[2], 100) == fusion.weighted(
    fusion.scale(FIRST), fusion.scale(SECOND), 0.6
  )
  # The better of the two gets more weight if they disagree.
  bad = {"dev/en": {"q1": {"c": 1.0, "b": 0.9}, "q2": {"a": 1.0, "b": 0.9}}}
  assert systems.MinMax(fixed(dev), fixed(bad), tests, 100).weights["en"] > 0.5
  assert systems.MinMax(fixed(bad), fixed(dev), tests, 100).weights["en"] < 0.5


def test_without_english_dev_a_dev_set_chooses_for_its_own_language():
  both = {"dev/de": FIRST, "test/de": FIRST, "test/fr": FIRST}
  tests = [make_test("de", "dev"), make_test("de"), make_test("fr")]
  fused = systems.MinMax(fixed(both), fixed(both), tests, 100)
  assert fused.weights.keys() == {"de"}
  assert fused(tests[1], 100) and fused(tests[2], 100) is None
  assert "(de 0.5); other languages have no run" in fused.describe("x")
  none = systems.MinMax(fixed(both), fixed(both), tests[1:], 100)
  assert none.weights == {} and "There is no dev set" in none.describe("x")


MODULE = """
import numpy as np
from collections import OrderedDict
good = lambda test, k: {q: {"a": np.float32(1)} for q in test.queries}
none = lambda test, k: None
listed = lambda test, k: ["a"]
query = lambda test, k: {"q9": {}}
inner = lambda test, k: {"q1": ["a"]}
passage = lambda test, k: {"q1": {"z": 1}}
score = lambda test, k: {"q1": {"a": float("nan")}}
text = lambda test, k: {"q1": {"a": "high"}}
number = 3
"""


def test_a_system_of_the_user_is_found_and_its_run_is_checked(
  tmp_path, monkeypatch
):
  (tmp_path / "systems_of_a_user.py").write_text(MODULE)
  monkeypatch.syspath_prepend(tmp_path)

  def call(name):
    found = own_systems.find({"x": f"systems_of_a_user:{name}"})
    return found["x"](make_test(), 5)

  assert call("good") == {q: {"a": 1.0} for q in ("q1", "q2", "q3")}
  assert call("none") is None
  for name, message in (
    ("listed", "list, not query id"),
    ("query", "the query 'q9', which the test does not have"),
    ("inner", "['a'] for 'q1', not passage id"),
    ("passage", "the passage 'z', which the corpus does not have"),
    ("score", "the score nan of 'a', not a number"),
    ("text", "the score 'high' of 'a', not a number"),
  ):
    where = f"--system=x (systems_of_a_user:{name}) returns for test/en "
    with pytest.raises(ValueError, match=re.escape(where + message)):
      call(name)
  for name, message in (("number", "is not a function"), ("no", "defines no")):
    with pytest.raises(ValueError, match=f"^--system=x is .*{message}"):
      call(name)


def test_names_are_the_ends_of_paths_and_differ():
  taken = {}
  for path in ("/m/e5", "/n/e5", "/n/e5/", "org/e5 small", "../é"):
    taken[systems.name_of(path, taken)] = path
  assert list(taken) == ["e5", "n.e5", "n.e5.2", "e5-small", "x"]
  assert all(systems.NAME.fullmatch(name) for name in taken)
  assert systems.name_of("runs/test.de.trec", {}) == "test.de"


def test_dense_search_gives_each_query_its_passages(one_device):
  from mlir_jax import sharding

  def embed(role, texts, titles=None):
    vectors = np.zeros((len(texts), 26), "f4")
    for vector, text in zip(vectors, texts, strict=True):
      for letter in text.lower():
        if letter.isascii() and letter.isalpha():
          vector[ord(letter) - 97] += 1
    return vectors

  run = systems.Dense(embed, sharding.make_mesh())(make_test(), 2)
  product = embed("", ["river"]) @ embed("", [p.text for p in PASSAGES]).T
  scores = dict(zip("abcde", product[0].tolist(), strict=True))
  assert run["q1"] == dict(runs.ranked(scores)[:2])
