"""A value with its interval: over the seeds of a run, or from a file."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

from mlir_jax.reporting import column_files


class Estimate(NamedTuple):
  """A value with an interval, if there is one.

  Attributes:
    value: The value; over several seeds, their mean.
    interval: Where the value is with a probability of 95 %, or None.
    seeds: How many runs it is the mean of.
  """

  value: float
  interval: column_files.Interval | None
  seeds: int


def over_seeds(
  values: Sequence[float], interval: column_files.Interval | None = None
) -> Estimate:
  """Estimates the mean over seeds.

  The interval is Student's t: mean ± t(n - 1) · s / √n.

  Args:
    values: A value for each seed, at least one.
    interval: Taken for a single seed.
  """
  mean = float(np.mean(values))
  if len(values) < 2:
    return Estimate(mean, interval, 1)
  error = np.std(values, ddof=1) / np.sqrt(len(values))
  quantile = scipy.stats.t.ppf(
    (1 + column_files.CONFIDENCE) / 2, len(values) - 1
  )
  half = float(quantile * error)
  return Estimate(
    mean, column_files.Interval(mean - half, mean + half), len(values)
  )


def to_text(estimate: Estimate | None, scale: float = 100) -> str:
  """Writes an estimate: "45.1 ± 0.3" of seeds, "45.1 [44.0, 46.2]" else."""
  if estimate is None or not np.isfinite(estimate.value):
    return "–"
  places = 1 if scale == 100 else 3
  value = f"{scale * estimate.value:.{places}f}"
  if estimate.interval is None:
    return value
  low, high = (scale * end for end in estimate.interval)
  if estimate.seeds > 1:
    return f"{value} ± {(high - low) / 2:.{places}f}"
  return f"{value} [{low:.{places}f}, {high:.{places}f}]"
