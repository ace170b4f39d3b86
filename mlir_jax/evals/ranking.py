"""Runs systems on tests, and measures their TREC runs."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jax.sharding import Mesh

from mlir_jax.data import records
from mlir_jax.evals import measures, systems
from mlir_jax.retrieval import runs


def describe_unfindable(tests: Sequence[records.RetrievalTest]) -> list[str]:
  """Describes relevant passages without text, and queries without judgements.

  Returns:
    A line for each kind that there is.
  """

  def name(test):
    split = "" if test.split == "test" else f" ({test.split})"
    return f"{test.language}{split}"

  missing, unjudged, hidden = [], [], []
  for test in tests:
    known = {passage.passage_id for passage in test.passages}
    relevant = [
      passage_id
      for judged in test.qrels.values()
      for passage_id, relevance in judged.items()
      if relevance > 0
    ]
    if absent := sum(passage_id not in known for passage_id in relevant):
      missing.append(f"{name(test)} {absent:,} of {len(relevant):,}")
    absent = sum(not test.qrels.get(query) for query in test.queries)
    if not any(test.qrels.values()):
      hidden.append(name(test))
    elif absent:
      unjudged.append(f"{name(test)} {absent:,} of {len(test.queries):,}")
  lines = []
  if missing:
    lines.append(
      "Relevant passages that are not in the corpus count as not found:"
      f" {', '.join(missing)}."
    )
  if unjudged:
    lines.append(
      f"Queries without judgements are not in the means: {', '.join(unjudged)}."
    )
  if hidden:
    lines.append(
      "Tests without any judgement have TREC runs, but no values:"
      f" {', '.join(hidden)}."
    )
  return lines


def by_corpus(
  tests: Sequence[records.RetrievalTest],
) -> list[records.RetrievalTest]:
  """Orders tests so that those with an equal corpus follow each other.

  Equal corpora become one object, so a system encodes each of them once. The
  tests of a corpus, and the corpora, keep their order.
  """
  groups: dict[tuple[records.Passage, ...], list[records.RetrievalTest]] = {}
  for test in tests:
    groups.setdefault(tuple(test.passages), []).append(test)
  return [
    dataclasses.replace(test, passages=passages)
    if test.passages is not passages
    else test
    for passages, group in groups.items()
    for test in group
  ]


def search(
  system: systems.System, test: records.RetrievalTest, k: int
) -> runs.Run | None:
  """Returns the run of a system: at most k passages of each query.

  A query in the test's `own_passages` is also a passage of the corpus, with the
  same id. It is removed from its own results, unless the qrels judge it. Other
  queries than the test's are left out.

  Args:
    system: The system.
    test: The test.
    k: Passages retrieved per query.
  """
  run = system(test, k + bool(test.own_passages))
  if run is None:
    return None
  own_passages = frozenset(test.own_passages)
  found = {}
  for query_id in test.queries:
    scores = run.get(query_id, {})
    if query_id in own_passages and query_id not in test.qrels.get(
      query_id, ()
    ):
      scores = {
        name: score for name, score in scores.items() if name != query_id
      }
    found[query_id] = dict(runs.ranked(scores)[:k])
  return found


def run_system(
  system: systems.System,
  tests: Sequence[records.RetrievalTest],
  chosen: Sequence[measures.Measure],
  *,
  top_k: int,
  trec_folder: str | os.PathLike | None = None,
  tag: str = "mlir_jax",
  look: Callable[[records.RetrievalTest, runs.Run], None] | None = None,
) -> dict[str, dict[str, dict[str, float]]]:
  """Makes the runs of all tests and measures each judged query.

  Args:
    system: The system.
    tests: The tests.
    chosen: The measures.
    top_k: Passages retrieved per query.
    trec_folder: Folder for the TREC runs, SPLIT.LANGUAGE.trec; None to write
      none. Of several processes, only one may write.
    tag: The name of the system in TREC runs.
    look: Receives each test with its run; None for nobody.

  Returns:
    Test ("test/de"), query id and measure to value, in the order of the tests.
    A test without a run, or without a judgement, has no queries.
  """
  values = {f"{test.split}/{test.language}": {} for test in tests}
  for test in by_corpus(tests):
    run = search(system, test, top_k)
    if run is None:
      continue
    if trec_folder is not None:
      path = os.path.join(trec_folder, systems.run_file(test))
      runs.write_run(path, run, tag)
    if look is not None:
      look(test, run)
    values[f"{test.split}/{test.language}"] = measures.per_query(
      chosen, test.qrels, run
    )
  return values


def results(
  values: Mapping[str, measures.Values], chosen: Sequence[measures.Measure]
) -> dict[str, float]:
  """Returns {"test/de/mrr@100": mean over judged queries, ...}."""
  return {
    f"{test}/{name}": mean
    for test, of_test in values.items()
    for name, mean in measures.means(chosen, of_test).items()
  }


def evaluate(
  embed: Callable[..., np.ndarray],
  tests: Sequence[records.RetrievalTest],
  mesh: Mesh,
  *,
  top_k: int = measures.DEPTH,
  trec_folder: str | os.PathLike | None = None,
  chosen: Sequence[measures.Measure] = measures.DEFAULT,
) -> Iterator[tuple[str, float]]:
  """Measures a model on tests.

  Args:
    embed: `embed(role, texts, titles=None)`, float32 [n, D] of n texts.
    tests: The tests.
    mesh: Its axis "data" splits the passages.
    top_k: Passages retrieved per query, at least 100.
    trec_folder: As in `run_system`.
    chosen: The measures.

  Yields:
    Name and value, ("test/de/mrr@100", 0.4).

  Raises:
    ValueError: if `top_k` is too low for a measure.
  """
  measures.check_depth(chosen, top_k, "eval.top_k")
  values = run_system(
    systems.Dense(embed, mesh),
    tests,
    chosen,
    top_k=top_k,
    trec_folder=trec_folder,
  )
  yield from results(values, chosen).items()
