"""Intervals and tests for means over queries: how sure is a difference?

All draws come from one seed and the name of the test, so a second call gives
the same numbers, and a language has the same draws in every table.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

RESAMPLES = 10_000  # Of a bootstrap.
PERMUTATIONS = 100_000  # Of a randomisation test.
LEVEL = 0.95
_NUMBERS = 1 << 22  # Numbers that are drawn at once; it bounds memory.
# Two sums of the same numbers may differ by rounding. They count as equal.
_ROUNDING = 1e-10


def _portions(count: int, width: int) -> Iterator[int]:
  """Yields sizes that sum to `count`, of rows of `width` numbers."""
  size = max(1, _NUMBERS // max(width, 1))
  for start in range(0, count, size):
    yield min(size, count - start)


def _generator(name: str, kind: int) -> np.random.Generator:
  return np.random.default_rng([kind, zlib.crc32(name.encode())])


def bootstrap(
  values: np.ndarray, name: str, resamples: int = RESAMPLES
) -> np.ndarray:
  """Returns means over queries that are drawn anew, with replacement.

  This is the bootstrap (Efron 1979; for retrieval, Sakai, SIGIR 2006).

  Args:
    values: float64 [n, M], the values of n queries in M measures. The draws are
      the same for all measures.
    name: The test, "test/de"; it decides the draws.
    resamples: The number R of means.

  Returns:
    float64 [R, M].
  """
  generator, count = _generator(name, 0), len(values)
  means = []
  for size in _portions(resamples, count):
    rows = generator.integers(0, count, (size, count))
    rows += count * np.arange(size)[:, None]
    drawn = np.bincount(rows.ravel(), minlength=size * count)
    means.append(drawn.reshape(size, count) @ values / count)
  return np.concatenate(means)


def interval(means: np.ndarray, level: float = LEVEL) -> np.ndarray:
  """Returns the percentile interval of bootstrap means, [R, M] -> [2, M]."""
  outside = (1 - level) / 2
  return np.quantile(means, [outside, 1 - outside], axis=0)


def randomisation(
  differences: Sequence[np.ndarray],
  name: str,
  permutations: int = PERMUTATIONS,
) -> np.ndarray:
  """Returns two-sided p-values of Fisher's paired randomisation test.

  If two systems are equally good, each query's values could as well be swapped
  (Smucker, Allan and Carterette, CIKM 2007). The p-value is the share of random
  swaps with a mean difference as large as the one that was found. The found one
  counts as one of the swaps (Phipson and Smyth 2010), so it is never 0. With
  few queries, each possible swap is counted once.

  Args:
    differences: For each stratum (a language) float64 [n, M], the differences
      of n queries in M measures. The statistic is the mean of the strata's
      means.
    name: The test; it decides the swaps.
    permutations: The number of random swaps.

  Returns:
    float64 [M], in (0, 1].
  """
  # A row's weight makes the sum over all rows the mean of the strata's means.
  rows = np.concatenate(
    [each / (len(each) * len(differences)) for each in differences]
  )
  found = np.abs(rows.sum(axis=0))
  least = found * (1 - _ROUNDING) - np.finfo(np.float64).tiny
  larger = np.zeros(rows.shape[1], np.int64)
  if exact := 2 ** min(len(rows), 62) <= permutations:
    permutations = 2 ** len(rows)
    places = np.arange(len(rows))
  generator = _generator(name, 1)
  done = 0
  for size in _portions(permutations, len(rows)):
    if exact:
      swapped = np.arange(done, done + size)[:, None] >> places & 1
    else:
      swapped = generator.integers(0, 2, (size, len(rows)), np.int8)
    sums = (1.0 - 2.0 * swapped) @ rows
    larger += (np.abs(sums) >= least).sum(axis=0)
    done += size
  if exact:
    return larger / permutations
  return (larger + 1) / (permutations + 1)


def holm(p_values: Sequence[float]) -> list[float]:
  """Corrects p-values for their number (Holm 1979).

  The chance of one or more false discoveries among all is then at most the
  level, whatever their dependence.

  Args:
    p_values: One for each language.

  Returns:
    Corrected p-values, in the same order.
  """
  corrected = [1.0] * len(p_values)
  highest = 0.0
  for rank, place in enumerate(np.argsort(p_values, kind="stable")):
    highest = max(highest, (len(p_values) - rank) * p_values[place])
    corrected[place] = min(1.0, highest)
  return corrected


def of_values(
  values: Mapping[str, Mapping[str, float]], names: Sequence[str]
) -> np.ndarray:
  """Returns float64 [n, M] of n queries and the M measures of `names`."""
  rows = [[of_query[name] for name in names] for of_query in values.values()]
  return np.array(rows, np.float64).reshape(len(rows), len(names))


def intervals(
  tests: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> dict[str, list[float]]:
  """Returns the 95 % interval of each mean.

  Args:
    tests: Test, query id and measure to value.

  Returns:
    {"test/de/mrr@100": [low, high], ...}
  """
  found = {}
  for test, values in tests.items():
    if not values:
      continue
    names = list(next(iter(values.values())))
    ends = interval(bootstrap(of_values(values, names), test))
    for name, low, high in zip(names, *ends.tolist(), strict=True):
      found[f"{test}/{name}"] = [low, high]
  return found
