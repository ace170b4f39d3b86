"""Fuses two or more TREC runs of the same queries into one."""

from collections.abc import Callable, Mapping, Sequence

from mlir_jax.retrieval import runs

K = 60  # Of Cormack et al.
WEIGHTS = tuple(step / 10 for step in range(11))


def reciprocal_ranks(parts: Sequence[runs.Run], k: int = K) -> runs.Run:
  """Fuses by ranks: a passage's score is the sum of 1 / (k + rank).

  This is reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009).
  Ranks begin at 1 and are in the order of trec_eval. A run that does not hold a
  passage adds nothing.

  Args:
    parts: The runs. A query may be missing in some of them.
    k: The constant.
  """
  fused: dict[str, dict[str, float]] = {}
  for part in parts:
    for query_id, scores in part.items():
      sums = fused.setdefault(query_id, {})
      for rank, (passage_id, _) in enumerate(runs.ranked(scores), start=1):
        sums[passage_id] = sums.get(passage_id, 0.0) + 1 / (k + rank)
  return fused


def scale(run: runs.Run) -> dict[str, dict[str, float]]:
  """Scales each query's scores to the range from 0, the lowest, to 1.

  If all scores of a query are equal, they become 1.
  """
  scaled = {}
  for query_id, scores in run.items():
    low = min(scores.values(), default=0.0)
    span = max(scores.values(), default=0.0) - low
    scaled[query_id] = {
      passage_id: (score - low) / span if span else 1.0
      for passage_id, score in scores.items()
    }
  return scaled


def weighted(
  first: runs.Run, second: runs.Run, weight: float
) -> dict[str, dict[str, float]]:
  """Fuses by scores: weight * first + (1 - weight) * second.

  Args:
    first: A run, from `scale`. A passage that it does not hold has 0.
    second: Another one.
    weight: Of the first one, from 0 to 1.
  """
  fused = {}
  for query_id in {**first, **second}:
    one, other = first.get(query_id, {}), second.get(query_id, {})
    fused[query_id] = {
      passage_id: weight * one.get(passage_id, 0.0)
      + (1 - weight) * other.get(passage_id, 0.0)
      for passage_id in {**one, **other}
    }
  return fused


def tune(value: Callable[[float], float]) -> float:
  """Returns the weight of `WEIGHTS` with the highest value on dev.

  Of equal values, the weight nearest to 1/2 wins, then the lower one.

  Args:
    value: Returns the value of a weight.
  """
  values: Mapping[float, float] = {each: value(each) for each in WEIGHTS}
  return max(WEIGHTS, key=lambda each: (values[each], -abs(each - 0.5), -each))
