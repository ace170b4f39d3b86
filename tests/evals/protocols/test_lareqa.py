"""The measures in a pool of languages are those of their definitions."""

import dataclasses
import gzip

import jax
import numpy as np
import pytest

from mlir_jax import sharding
from mlir_jax.data import collections, records
from mlir_jax.evals.protocols import lareqa, pools, protocol_data

LANGUAGES = ("de", "en", "zh")


def make_tests(questions=7, others=9):
  """One answer for each question and language, "en" has two of the first."""
  tests = []
  for language in LANGUAGES:
    answers = {f"q{n}": {f"a{n}.{language}": 1} for n in range(questions)}
    if language == "en":
      answers["q0"]["a1.en"] = 1
      answers["q2"]["gone.en"] = 1  # It is not in the corpus.
    if language == "zh":
      answers["q3"] = {"a3.zh": 0}  # No answer in this language.
      answers["unjudged"] = {}
    names = [f"a{n}.{language}" for n in range(questions)]
    names += [f"x{n}.{language}" for n in range(others)]
    tests.append(
      records.RetrievalTest(
        language,
        "test",
        tuple(
          records.Passage(
            f"text {name}", "", name, f"P{number // 3}.{language}"
          )
          for number, name in enumerate(names)
        ),
        {name: f"{name} in {language}" for name in answers},
        answers,
      )
    )
  return tests


def embedder(width=6, ties=False):
  """Vectors that depend on the text alone."""

  def vector(text):
    rng = np.random.default_rng(list(text.encode()))
    return rng.integers(-2, 3, width) if ties else rng.standard_normal(width)

  def embed(role, texts, titles=None):
    titles = titles or [""] * len(texts)
    return np.array(
      [
        vector(f"{role} {title} {text}")
        for title, text in zip(titles, texts, strict=True)
      ],
      "f4",
    )

  return embed


def precision_by_definition(order, relevant, cut):
  """Mean, over the relevant ones, of the precision at each one's rank."""
  total, hits = 0.0, 0
  for rank, name in enumerate(order[:cut], start=1):
    if name in relevant:
      hits += 1
      total += hits / rank
  return total / len(relevant)


def measures_by_definition(tests, embed):
  """All measures, by sorting whole pools in NumPy; no code of the package.

  A pool is sorted by (score, id), both descending, as trec_eval does.
  """
  passages = {
    test.language: [
      (
        passage.passage_id,
        embed("passage", [passage.text], [passage.title])[0].astype("f8"),
      )
      for passage in test.passages
    ]
    for test in tests
  }
  answers = {}
  for test in tests:
    for query_id, judged in test.qrels.items():
      for name, relevance in judged.items():
        if relevance > 0:
          answers.setdefault(query_id, {}).setdefault(test.language, set()).add(
            name
          )
  values = {}

  def add(name, language, value):
    kind, *rest = name.split("/")
    values.setdefault(name, []).append(value)
    values.setdefault("/".join([kind, language, *rest]), []).append(value)

  for test in tests:
    for query_id, query in test.queries.items():
      if query_id not in answers:
        continue
      vector = embed("query", [query])[0].astype("f8")

      def sort(languages, left_out=(), vector=vector):
        pool = [each for name in languages for each in passages[name]]
        ranked = sorted(
          (
            (vector @ each, name) for name, each in pool if name not in left_out
          ),
          reverse=True,
        )
        return [name for _, name in ranked]

      by_language = answers[query_id]
      own = by_language.get(test.language, set())
      every = set().union(*by_language.values())
      whole = sort(passages)
      for name, cut in (("map", None), ("map@20", 20)):
        if own:
          add(
            f"mono/{name}",
            test.language,
            precision_by_definition(sort([test.language]), own, cut),
          )
        add(
          f"cross/{name}",
          test.language,
          precision_by_definition(sort(passages, own), every - own, cut),
        )
        add(
          f"pooled/{name}",
          test.language,
          precision_by_definition(whole, every, cut),
        )
      alone = [
        precision_by_definition(sort([name]), by_language[name], None)
        for name in passages
        if name != test.language and name in by_language
      ]
      add("alone/map", test.language, np.mean(alone))
      places = [whole.index(name) for name in every if name in whole]
      add("rank_distance", test.language, max(places) - min(places))
  return {name: float(np.mean(each)) for name, each in values.items()}


@pytest.mark.parametrize("ties", [False, True])
def test_all_measures_equal_those_of_their_definitions(ties):
  tests, embed = make_tests(), embedder(2 if ties else 6, ties)
  data = protocol_data.Data(tests)
  found = lareqa.sentences(embed, data, sharding.make_mesh())
  assert found.pop("languages") == list(LANGUAGES)
  matrix = found.pop("alone/matrix")
  expected = measures_by_definition(tests, embed)
  assert found == pytest.approx(expected, abs=1e-12)
  assert len(set(expected.values())) > 20
  assert found["pooled/zh/map@20"] < found["pooled/zh/map"]
  for row, language in enumerate(LANGUAGES):  # Of the own language, mono.
    assert matrix[row][row] == pytest.approx(
      expected[f"mono/{language}/map"]
    ) or (language == "zh")


def test_a_retriever_without_a_preferred_language_is_perfect():
  """Equal answers have equal vectors; one that prefers a language is not."""
  tests = make_tests(others=0)
  data = protocol_data.Data(
    [
      records.RetrievalTest(
        test.language,
        "test",
        test.passages,
        {f"q{n}": f"q{n} in {test.language}" for n in range(7)},
        {f"q{n}": {f"a{n}.{test.language}": 1} for n in range(7)},
      )
      for test in tests
    ]
  )

  def embed(role, texts, titles=None, preference=0.0):
    vectors = np.zeros((len(texts), 7 + len(LANGUAGES)), "f4")
    for vector, text in zip(vectors, texts, strict=True):
      vector[int("".join(c for c in text.split(".")[0] if c.isdigit()))] = 1
      vector[7 + [text.endswith(name) for name in LANGUAGES].index(True)] = (
        preference
      )
    return vectors

  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  fair = lareqa.sentences(embed, data, mesh)
  assert {
    fair[f"{kind}/map"] for kind in ("mono", "cross", "pooled", "alone")
  } == {1}
  assert fair["rank_distance"] == 2  # Three answers are at ranks 1 to 3.
  biased = lareqa.sentences(
    lambda *texts: embed(*texts, preference=3.0), data, mesh
  )
  assert biased["mono/map"] == biased["alone/map"] == 1
  # After its own answer come the six other passages in the language.
  assert biased["cross/map"] == pytest.approx((1 / 7 + 2 / 8) / 2)
  assert biased["pooled/map"] == pytest.approx((1 + 2 / 8 + 3 / 9) / 3)
  assert biased["rank_distance"] == 8


def test_a_sentence_is_read_with_its_paragraph():
  seen = {}

  def embed(role, texts, titles=None):
    if role == "passage":
      seen.update(zip(titles, texts, strict=True))
    return embedder()(role, texts, titles)

  data = protocol_data.Data(make_tests(questions=4, others=2))
  lareqa.with_paragraphs(embed, data, sharding.make_mesh())
  assert seen["text a1.de"] == "text a0.de text a1.de text a2.de"
  assert seen["text x1.en"] == "text a3.en text x0.en text x1.en"
  tests = make_tests()
  passage = records.Passage("text", "", "no-paragraph.de")
  tests[0] = records.RetrievalTest(
    "de", "test", (passage,), tests[0].queries, tests[0].qrels
  )
  with pytest.raises(ValueError, match=r"'no-paragraph.de' does not name its"):
    lareqa.with_paragraphs(
      embed, protocol_data.Data(tests), sharding.make_mesh()
    )


def test_tests_that_make_no_pool_are_refused():
  tests = make_tests()
  with pytest.raises(ValueError, match="The test sets, in de, have no such"):
    pools.of_tests(tests[:1])
  with pytest.raises(ValueError, match="one id in all languages"):
    pools.of_tests(tests, "dev")
  other = records.RetrievalTest(
    "fi", "test", tests[0].passages, tests[0].queries, tests[0].qrels
  )
  with pytest.raises(ValueError, match=r"'a0.de' is in 'de' and in 'fi'"):
    pools.of_tests([*tests, other])


def cut(test, questions, passages):
  """Keeps the first questions, their answers, and the first other passages."""
  queries = dict(list(test.queries.items())[:questions])
  qrels = {query_id: test.qrels[query_id] for query_id in queries}
  answers = {name for judged in qrels.values() for name in judged}
  return dataclasses.replace(
    test,
    queries=queries,
    qrels=qrels,
    passages=tuple(
      passage
      for number, passage in enumerate(test.passages)
      if number < passages or passage.passage_id in answers
    ),
  )


def check_xquad_r(shared, embed, mesh, questions, passages):
  """Compares the three mAPs of XQuAD-R with the definition, in NumPy.

  Each language has so many questions and, besides their answers, passages.
  """
  root = str(shared / "data" / "xquadr")
  tests = [
    cut(test, questions, passages)
    for test in collections.load("folder", root, require_pairs=False).tests()
  ]
  found = lareqa.sentences(embed, protocol_data.Data(tests), mesh)
  with gzip.open(shared / "data/xquadr/pool/qrels.txt.gz", "rt") as lines:
    judged = {}
    for line in lines:
      query_id, _, name, _ = line.split()
      judged.setdefault(query_id, set()).add(name)
  # Questions have one id in all languages.
  assert len({name for test in tests for name in test.queries}) == questions
  names = np.array([p.passage_id for test in tests for p in test.passages])
  passages = np.concatenate(
    [embed("passage", [p.text for p in test.passages]) for test in tests]
  ).astype("f8")
  # Sorted by id, descending: a stable sort by score then breaks ties.
  order = np.argsort(names)[::-1]
  names, passages = names[order], passages[order]
  row_of = {name: row for row, name in enumerate(names)}
  language = np.array([name.rpartition(".")[2] for name in names])
  values = {"mono": [], "cross": [], "pooled": [], "distance": []}
  for test in tests:
    queries = embed("query", list(test.queries.values())).astype("f8")
    for query_id, row in zip(test.queries, queries @ passages.T, strict=True):
      ranked = np.argsort(-row, kind="stable")
      is_answer = np.zeros(len(ranked), bool)
      is_answer[[row_of[name] for name in judged[query_id]]] = True
      is_answer = is_answer[ranked]
      is_own = language[ranked] == test.language
      for kind, kept in (
        ("mono", is_own),
        ("cross", ~(is_own & is_answer)),
        ("pooled", np.ones(len(ranked), bool)),
      ):
        places = np.flatnonzero(is_answer[kept]) + 1
        values[kind].append(np.mean(np.arange(1, len(places) + 1) / places))
      values["distance"].append(np.ptp(np.flatnonzero(is_answer)))
  expected = {name: float(np.mean(each)) for name, each in values.items()}
  print({name: found[name] for name in sorted(found) if "/" in name})
  for kind in ("mono", "cross", "pooled"):
    # Scores are float32 here and float64 there, so near ties may swap.
    assert found[f"{kind}/map"] == pytest.approx(expected[kind], abs=2e-5)
  assert found["rank_distance"] == pytest.approx(expected["distance"], abs=0.1)
  return found


@pytest.mark.slow
def test_xquad_r_with_whole_e5_small_equals_numpy(shared, whole_e5_small_path):
  import mlir_jax

  model = mlir_jax.load(str(whole_e5_small_path))
  embed = model.text_encoder.with_params(model.params)
  kept = {}

  def remember(role, texts, titles=None):
    key = role, tuple(texts)
    if key not in kept:
      kept[key] = embed(role, texts)
    return kept[key]

  mesh = model.text_encoder.mesh
  found = check_xquad_r(shared, remember, mesh, questions=40, passages=80)
  assert 0.2 < found["pooled/map"] < found["mono/map"] < 1


@pytest.mark.slow
def test_xquad_r_with_random_vectors_equals_numpy(shared):
  def embed(role, texts, titles=None):
    rng = np.random.default_rng(len(texts))
    vectors = rng.standard_normal((len(texts), 16)).astype("f4")
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  check_xquad_r(shared, embed, mesh, questions=100, passages=10_000)
