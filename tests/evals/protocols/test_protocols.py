"""Protocols are found by name, share vectors, and have a place in the table."""

import json
import re

import jax
import numpy as np
import pytest

from mlir_jax import sharding
from mlir_jax.data import records
from mlir_jax.evals import protocols, ranking, report
from mlir_jax.evals.protocols import (
  english_corpus,
  language_protocol,
  language_samples,
  pools,
  protocol_data,
)

LANGUAGES = ("de", "en", "fi")
WORDS = [f"word{n}" for n in range(60)]


@pytest.fixture
def mesh():
  return sharding.make_mesh(devices=jax.devices()[:1])


def make_tests(count=40):
  return [
    records.RetrievalTest(
      language,
      "test",
      tuple(
        records.Passage(f"{n} {language}", "", f"p{n}.{language}")
        for n in range(count + 20)
      ),
      {f"q{n}": f"{n} {language}" for n in range(count)},
      {f"q{n}": {f"p{n}.{language}": 1} for n in range(count)},
    )
    for language in LANGUAGES
  ]


def make_embed(offset):
  """A vector of the number, and `offset` times one of the language."""
  calls = []

  def vector(text, role):
    number, language = text.split()
    rng = np.random.default_rng([int(number), 1])
    own = np.random.default_rng([LANGUAGES.index(language), 2])
    noise = np.random.default_rng([int(number), LANGUAGES.index(language), 3])
    return (
      rng.standard_normal(16)
      + 0.2 * noise.standard_normal(16)
      + offset * own.standard_normal(16)
    )

  def embed(role, texts, titles=None):
    calls.append((role, tuple(texts)))
    return np.array([vector(text, role) for text in texts], "f4")

  return embed, calls


def run(names, embed, mesh, tests=None, **data):
  found = protocols.find({name: name for name in names}, "--protocol=", {})
  return protocols.run(
    found, embed, protocol_data.Data(tests or make_tests(), **data), mesh
  )


def test_protocols_share_vectors_and_results_have_places(mesh, tmp_path):
  embed, calls = make_embed(offset=2.0)
  outcome = run(["lareqa", "clir", "languages"], embed, mesh)
  assert len(calls) == len(set(calls))  # No text list is encoded twice.
  results = outcome.results
  table = report.make_table({"now": results}, {})
  labels = [row.label for row in table.rows]
  assert labels == [*LANGUAGES, "mean"]
  for measure in ("lareqa-mono map", "lareqa-cross map@20", "clir-en r@100"):
    assert measure in table.measures
  german = table.rows[0].values
  assert german["lareqa-mono map"] == (results["lareqa-mono/de/map"],)
  (clir,) = table.rows[1].values["clir-en r@100"]
  assert clir is None  # English queries on English passages are no CLIR.
  extra = {(row.evaluator, row.metric): row.values[0] for row in table.extra}
  assert extra["lareqa", "pooled/map"] == results["lareqa/pooled/map"]
  assert extra["lareqa", "rank_distance/fi"] > 1
  # Vectors with an offset prefer their language everywhere.
  assert results["lareqa/mono/map"] > results["lareqa/cross/map"] + 0.2
  assert results["languages/passages/probe_accuracy"] == 1
  assert results["languages/queries/language_gap"] > 0.2
  assert results["languages/top10/same_language"] > 0.9
  outcome.write(str(tmp_path))
  diagnostics = json.loads((tmp_path / "diagnostics.json").read_text("utf-8"))
  assert len(diagnostics["lareqa/alone/matrix"]) == 3
  assert diagnostics["languages/top10/languages"] == list(LANGUAGES)
  assert diagnostics["lareqa/pooled/map"] == results["lareqa/pooled/map"]
  points = json.loads((tmp_path / "map.json").read_text("utf-8"))["points"]
  assert {point["language"] for point in points} == set(LANGUAGES)


def test_without_the_offset_nothing_prefers_a_language(mesh):
  embed, _ = make_embed(offset=0.0)
  results = run(["lareqa", "languages"], embed, mesh).results
  assert results["lareqa/cross/map"] > results["lareqa/mono/map"] - 0.1
  assert abs(results["languages/passages/language_gap"]) < 0.02
  assert results["languages/top10/same_language"] < 0.45
  assert results["languages/passages/probe_accuracy"] < 0.7
  assert results["languages/passages/alignment"] < 0.3


def test_queries_on_an_english_corpus_are_judged_by_the_english_test(mesh):
  embed, _ = make_embed(offset=1.0)
  tests = make_tests()
  found = english_corpus.evaluate(embed, protocol_data.Data(tests), mesh)
  assert {name.rpartition("/")[0] for name in found} == {"en/de", "en/fi"}
  german = records.RetrievalTest(
    "de", "test", tests[1].passages, tests[0].queries, tests[1].qrels
  )
  expected = {
    name.removeprefix("test/"): value
    for name, value in ranking.evaluate(embed, [german], mesh)
  }
  assert found.items() >= {f"en/{k}": v for k, v in expected.items()}.items()
  with pytest.raises(ValueError, match="need an English test"):
    english_corpus.evaluate(embed, protocol_data.Data(tests[:1]), mesh)
  with pytest.raises(ValueError, match="one id in all"):
    english_corpus.evaluate(embed, protocol_data.Data(tests[1:2]), mesh)


def test_a_protocol_of_the_user_is_found_and_checked(
  mesh, tmp_path, monkeypatch
):
  (tmp_path / "protocols_of_a_user.py").write_text(
    "def good(embed, data, mesh):\n"
    "  return {'mono/de/map': 0.5, 'speed/texts/s': 3, 'list': [1]}\n"
    "def bad(embed, data, mesh):\n  return {'a': None}\n"
    "def broken(embed, data, mesh):\n  raise ValueError('no tests')\n"
    "number = 3\n"
  )
  monkeypatch.syspath_prepend(tmp_path)

  def run_one(name):
    found = protocols.find(
      {"mine": f"protocols_of_a_user:{name}"}, "--protocol=", {}
    )
    return protocols.run(found, None, protocol_data.Data(), mesh)

  outcome = run_one("good")
  assert outcome.results == {"mine-mono/de/map": 0.5, "mine/speed/texts/s": 3}
  assert outcome.diagnostics == {"mine/speed/texts/s": 3, "mine/list": [1]}
  where = "--protocol=mine (protocols_of_a_user:"
  with pytest.raises(ValueError, match=re.escape(f"{where}bad) returns 'a'")):
    run_one("bad")
  with pytest.raises(ValueError, match=re.escape(f"{where}broken): no tests")):
    run_one("broken")
  with pytest.raises(ValueError, match="which is not a function"):
    run_one("number")
  with pytest.raises(ValueError, match="must be one of lareqa, lareqa_para"):
    protocols.find({"x": "lareka"}, "eval.protocols.", {})
  for name in ("test", "mine"):
    with pytest.raises(ValueError, match=f"protocols.{name}: give another"):
      protocols.find({name: "lareqa"}, "eval.protocols.", {"mine": 1})


def test_tests_that_only_share_numbers_are_not_parallel():
  """As in Mr. TyDi, where each language counts from 1."""
  tests = [
    records.RetrievalTest(
      language,
      "test",
      tuple(records.Passage(f"{n} {language}", "", f"{n}") for n in range(20)),
      {f"{n}": f"{n} {language}" for n in range(9)},
      {f"{n}": {f"{n}": 1} for n in range(9)},
    )
    for language in LANGUAGES
  ]
  assert pools.is_parallel(make_tests()) and not pools.is_parallel(tests)
  for make in (language_samples.of_queries, language_samples.of_passages):
    sample = make(tests)
    assert len(set(sample.meanings)) == len(sample.items) > 20
    parallel = make(make_tests())
    assert 3 * len(set(parallel.meanings)) == len(parallel.items) == 120


def test_a_sample_keeps_the_same_meanings_in_all_languages():
  pairs = [("de", f"{n} de", "en", f"{n} en") for n in range(50)]
  pairs += [("en", f"{n} en", "fi", f"{n} fi") for n in range(50)]
  sample = language_samples.of_translations(pairs, most=10)
  again = language_samples.of_translations(pairs[::-1], most=10)
  assert sample == again and len(sample.items) == 30
  assert len(set(sample.meanings)) == 10  # German and Finnish are linked.


def test_dev_text_is_measured_without_the_texts_of_tests(tmp_path):
  numbers = range(100, 160)
  for language in ("de", "en"):
    (tmp_path / f"dev.de-en.{language}").write_text(
      "".join(f"{n} {language}\n" for n in [3, 4, *numbers])
    )
  bad = records.BadRecords()
  found, notes = language_protocol.find_dev(
    str(tmp_path), make_tests(), (), bad
  )
  embed, calls = make_embed(offset=2.0)
  ((name, measure),) = found.items()
  metrics = measure(embed)
  assert metrics["probe_accuracy"] == 1 and metrics["language_gap"] > 0.2
  assert all(type(value) is float for value in metrics.values())
  (read,) = calls
  assert not {"3 de", "4 en"} & set(read[1]) and len(read[1]) == 120
  assert "left out: 2 of 62 translations" in notes[0] and report.may_name(name)
  assert language_protocol.find_dev("", (), (), bad) == ({}, [])
  with pytest.raises(ValueError, match=r"diagnostics_root=.* no such folder"):
    language_protocol.find_dev(f"{tmp_path}/no", (), (), bad)
  with pytest.raises(ValueError, match="give another name"):
    language_protocol.find_dev(str(tmp_path), (), (), bad, {name: 1})
