"""Mines translations from two monolingual texts, and measures F1 (BUCC).

The method is that of Artetxe and Schwenk (2019): the score of a pair is the
ratio of its cosine and the mean cosine of both sentences with their nearest
neighbours. So a sentence that is near to everything wins nothing by it.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from mlir_jax.data import records
from mlir_jax.evals import bitext
from mlir_jax.evals.protocols import protocol_data
from mlir_jax.retrieval import topk

NEIGHBOURS = 4  # As in the paper.
TEST = "test"
# A split that sets the threshold; the first one that there is.
TUNING = ("dev", "train", "training", "sample")


class Mined(NamedTuple):
  """Pairs of sentences; each sentence is in one pair at most.

  Attributes:
    rows: int [P, 2], the rows of a source and a target.
    margins: float64 [P], descending.
  """

  rows: np.ndarray
  margins: np.ndarray


class Score(NamedTuple):
  """Precision, recall and F1 of the pairs from some margin on."""

  precision: float
  recall: float
  f1: float


def mine(
  sources: np.ndarray,
  targets: np.ndarray,
  mesh: Mesh,
  neighbours: int = NEIGHBOURS,
) -> Mined:
  """Pairs sentences by their ratio margin (Artetxe and Schwenk 2019).

  margin(x, y) = cos(x, y) / ((mean_k cos(x, .) + mean_k cos(y, .)) / 2), with
  means over the k nearest neighbours in the other language. Candidates are the
  best target of each source and the best source of each target, among these k.
  From the highest margin down, a candidate is taken if both of its sentences
  are free (the paper's strategy "max. score").

  Args:
    sources: float32 [n, D], of unit length.
    targets: float32 [m, D], of unit length.
    mesh: Its axis "data" splits the sentences that are searched.
    neighbours: k.

  Raises:
    ValueError: if a mean is not positive, so that ratios have no meaning.
  """
  found = []
  for queries, answers in ((sources, targets), (targets, sources)):
    cosines, rows = topk.search(
      queries,
      topk.place(answers, mesh),
      min(neighbours, len(answers)),
      mesh=mesh,
      num_valid=len(answers),
      description="Searching neighbours",
    )
    found.append((cosines.astype(np.float64), rows))
  means = [cosines.mean(axis=1) for cosines, _ in found]
  if min(mean.min() for mean in means) <= 0:
    raise ValueError(
      "The mean cosine of a sentence and its nearest neighbours is not above 0."
      " The ratio margin has no meaning for such vectors."
    )
  best = []
  for (cosines, rows), own, other in zip(
    found, means, reversed(means), strict=True
  ):
    margins = 2 * cosines / (own[:, None] + other[rows])
    column = margins.argmax(axis=1)
    each = np.arange(len(rows))
    best.append((each, rows[each, column], margins[each, column]))
  (source, of_source, first), (target, of_target, second) = best
  pairs = np.concatenate(
    [np.stack([source, of_source], 1), np.stack([of_target, target], 1)]
  )
  margins = np.concatenate([first, second])
  taken, free = [], (np.ones(len(sources), bool), np.ones(len(targets), bool))
  # Of equal margins, the lower rows come first.
  for number in np.lexsort((pairs[:, 1], pairs[:, 0], -margins)):
    row, column = pairs[number]
    if free[0][row] and free[1][column]:
      free[0][row] = free[1][column] = False
      taken.append(number)
  return Mined(pairs[taken], margins[taken])


def best_threshold(
  margins: np.ndarray, right: np.ndarray, gold: int
) -> tuple[float, Score]:
  """Returns the threshold with the highest F1, and its score.

  It is halfway between the last pair that is taken and the next one.

  Args:
    margins: float [P], descending.
    right: bool [P], whether a pair is gold.
    gold: The number of gold pairs.
  """
  hits = np.cumsum(right)
  f1 = 2 * hits / (np.arange(1, len(margins) + 1) + gold)
  # A threshold takes all pairs of one margin, or none.
  f1[:-1][margins[:-1] == margins[1:]] = -1
  last = int(f1.argmax())
  following = margins[last + 1] if last + 1 < len(margins) else margins[last]
  threshold = float((margins[last] + following) / 2)
  return threshold, score(margins, right, gold, threshold)


def score(
  margins: np.ndarray, right: np.ndarray, gold: int, threshold: float
) -> Score:
  """Returns the score of the pairs whose margin is at least a threshold."""
  taken = margins >= threshold
  hits = int((taken & right).sum())
  count = int(taken.sum())
  return Score(
    hits / count if count else 0.0, hits / gold, 2 * hits / (count + gold)
  )


def evaluate(
  embed: protocol_data.Embed, data: protocol_data.Data, mesh: Mesh
) -> dict[str, float]:
  """Mines each pair of languages and measures F1.

  If a pair has the split "test" and another one, the other one sets the
  threshold ("f1"). Else the threshold is the best for the test itself
  ("best_f1"), which is an upper bound.

  Args:
    embed: `embed("sentence", texts)`, float32 [n, D] of n texts.
    data: Its mining tests.
    mesh: Its axis "data" splits the sentences that are searched.

  Returns:
    {"en/de/f1": value, "en/de/precision": …, "en/de/recall": …} for German and
    English, or "best_f1" in place of "f1".

  Raises:
    ValueError: if there are no mining tests.
  """
  if not data.mining_tests:
    raise ValueError(
      "There are no tests of bitext mining: put files that are named as in BUCC"
      " into the folder mining/ of the collection, such as de-en.test.de,"
      " de-en.test.en and de-en.test.gold."
    )
  by_pair: dict[tuple[str, str], dict[str, records.MiningTest]] = {}
  for test in data.mining_tests:
    pair = test.source_language, test.target_language
    by_pair.setdefault(pair, {})[test.split] = test
  results = {}
  for (source, target), splits in by_pair.items():
    language, pool = (target, source) if source == "en" else (source, target)
    tuning = next((name for name in TUNING if name in splits), None)
    measured = TEST if TEST in splits else tuning
    if measured is None:
      raise ValueError(
        f"The mining tests of {source}-{target} have the splits"
        f" {', '.join(splits)}; name one test, or one of {', '.join(TUNING)}."
      )
    mined = _mine_texts(embed, splits[measured], mesh)
    name = "f1"
    if tuning and tuning != measured:
      threshold, _ = best_threshold(*_mine_texts(embed, splits[tuning], mesh))
      found = score(*mined, threshold)
    else:
      name = "best_f1"
      _, found = best_threshold(*mined)
    results |= {
      f"{pool}/{language}/{name}": found.f1,
      f"{pool}/{language}/precision": found.precision,
      f"{pool}/{language}/recall": found.recall,
    }
  return results


def _mine_texts(
  embed: protocol_data.Embed, test: records.MiningTest, mesh: Mesh
) -> tuple[np.ndarray, np.ndarray, int]:
  """Mines the texts of a test; returns the arguments of `best_threshold`.

  Sentences with the same text are one sentence, because they have one vector.
  """

  def unique(sentences: Collection[str]) -> Sequence[str]:
    return list(dict.fromkeys(sentences))

  sources, targets = (
    unique(test.sources.values()),
    unique(test.targets.values()),
  )
  gold = {
    (test.sources[source], test.targets[target]) for source, target in test.gold
  }
  mined = mine(
    bitext.unit(embed("sentence", sources)),
    bitext.unit(embed("sentence", targets)),
    mesh,
  )
  right = [
    (sources[row], targets[column]) in gold for row, column in mined.rows
  ]
  return mined.margins, np.array(right, bool), len(gold)
