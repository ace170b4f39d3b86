"""Measures how well queries find their passages, per test."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import ir_measures
import numpy as np
from jax.sharding import Mesh

from mlir_jax.data import records
from mlir_jax.retrieval import index, runs

MEASURES = {
  "mrr@100": ir_measures.RR,  # Of TREC runs cut to 100: see `measures`.
  "ndcg@10": ir_measures.nDCG @ 10,
  "r@100": ir_measures.R @ 100,
  "success@1": ir_measures.Success @ 1,
}
DEPTH = 100


def measures(
  qrels: Mapping[str, Mapping[str, int]], run: runs.Run
) -> dict[str, float]:
  """Returns the measures of one TREC run: means over the judged queries.

  A judged query without results counts 0. A judged passage that is not in the
  corpus counts as not found. Queries without judgements are left out.

  MRR@100 is the reciprocal rank in the run after a cut to 100 passages in the
  order of trec_eval. The measure RR@100 of ir-measures is not used: its
  provider breaks ties in the opposite order.

  Args:
    qrels: Query id to passage id to relevance; above 0 is relevant.
    run: Query id to passage id to score.

  Returns:
    Each name of `MEASURES` with its value from 0 to 1.

  Raises:
    ValueError: if no query is judged.
  """
  qrels = {query_id: judged for query_id, judged in qrels.items() if judged}
  if not qrels:
    raise ValueError("The qrels are empty; there is nothing to measure.")
  cut = {
    query_id: dict(runs.ranked(scores)[:DEPTH])
    for query_id, scores in run.items()
  }
  values = ir_measures.calc_aggregate(MEASURES.values(), qrels, cut)
  return {name: float(values[measure]) for name, measure in MEASURES.items()}


def describe_unfindable(tests: Sequence[records.RetrievalTest]) -> list[str]:
  """Describes relevant passages without text, and queries without judgements.

  Returns:
    A line for each kind that there is.
  """

  def name(test):
    split = "" if test.split == "test" else f" ({test.split})"
    return f"{test.language}{split}"

  missing, unjudged = [], []
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
    if absent := sum(not test.qrels.get(query) for query in test.queries):
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
  return lines


def evaluate(
  embed: Callable[..., np.ndarray],
  tests: Sequence[records.RetrievalTest],
  mesh: Mesh,
  *,
  top_k: int = DEPTH,
  trec_folder: str | os.PathLike | None = None,
) -> Iterator[tuple[str, float]]:
  """Encodes and searches each test and measures the results.

  A query in a test's `own_passages` is also a passage of the corpus, with the
  same id. It is removed from its own results, unless the qrels judge it.

  Args:
    embed: `embed(role, texts, titles=None)`, float32 [n, D] of n texts.
    tests: The tests.
    mesh: Its axis "data" splits the passages.
    top_k: Passages retrieved per query, at least 100.
    trec_folder: Folder for the TREC runs, SPLIT.LANGUAGE.trec; None to write
      none. Of several processes, only one may write.

  Yields:
    Name and value, ("test/de/mrr@100", 0.4).

  Raises:
    ValueError: if `top_k` is below 100.
  """
  if top_k < DEPTH:
    raise ValueError(
      f"eval.top_k is {top_k}; MRR@{DEPTH} and R@{DEPTH} need at least {DEPTH}"
      " passages per query."
    )
  corpus = passages = None
  for test in tests:
    name = f"{test.split}/{test.language}"
    query_ids = list(test.queries)
    passage_ids = [passage.passage_id for passage in test.passages]
    # The splits of a language may share a corpus.
    if passages is None or test.passages is not corpus:
      corpus, passages = test.passages, None  # Frees the last index first.
      passages = index.Index(
        passage_ids,
        embed(
          "passage",
          [passage.text for passage in test.passages],
          [passage.title for passage in test.passages],
        ),
        mesh,
      )
    scores, found = passages.search(
      embed("query", list(test.queries.values())),
      top_k + bool(test.own_passages),
      description=f"Searching {name}",
    )
    own_passages = frozenset(test.own_passages)
    run = {}
    for query_id, ids, values in zip(query_ids, found, scores, strict=True):
      judged = test.qrels.get(query_id, {})
      results = [
        (passage_id, float(score))
        for passage_id, score in zip(ids, values, strict=True)
        if passage_id != query_id
        or query_id not in own_passages
        or passage_id in judged
      ]
      run[query_id] = dict(results[:top_k])
    if trec_folder is not None:
      runs.write_run(
        os.path.join(trec_folder, f"{test.split}.{test.language}.trec"), run
      )
    for measure, value in measures(test.qrels, run).items():
      yield f"{name}/{measure}", value
