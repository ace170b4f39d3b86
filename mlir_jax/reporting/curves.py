"""What runs logged while they trained, as a panel of curves for each metric."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from mlir_jax.evals import report
from mlir_jax.reporting import estimates, variants

# A longer curve is thinned: every n-th of its points is drawn.
POINTS = 300
# The order of panels: by the beginning of a metric's name, then as logged.
_FIRST = ("loss/total", "loss/", "dev/", "test/")
_LAST = ("learning_rate", "steps_per_second", "sequences_per_second", "padding")


@dataclasses.dataclass(frozen=True)
class Curve:
  """A metric of a variant over the steps.

  Attributes:
    variant: The number of the variant.
    steps: The steps.
    values: An estimate for each step; None where a run has no finite value.
  """

  variant: int
  steps: Sequence[int]
  values: Sequence[estimates.Estimate | None]


@dataclasses.dataclass(frozen=True)
class Panel:
  """A metric with the curves of all variants that have it."""

  metric: str
  curves: tuple[Curve, ...]

  @property
  def is_main(self) -> bool:
    """Whether a paper shows it: a loss, or the main measure on dev."""
    return self.metric.startswith("loss/") or (
      self.metric.endswith(f"/{report.MAIN}")
    )


def collect(
  found: Sequence[variants.Variant],
) -> tuple[list[Panel], dict[str, float]]:
  """Makes the panels of runs.

  Returns:
    A panel for each metric, and the metrics that never changed in any run,
    with their value; these have no panel.
  """
  logged = [[_by_metric(run.metrics) for run in v.runs] for v in found]
  names = dict.fromkeys(
    metric for runs in logged for run in runs for metric in run
  )
  panels, constant = [], {}
  for name in sorted(names, key=_rank):
    points = [run.get(name, {}) for runs in logged for run in runs]
    values = {value for each in points for value in each.values()}
    if len(values) == 1 and sum(map(len, points)) > 1:
      constant[name] = values.pop()
      continue
    curves = tuple(
      _make_curve(number, [run[name] for run in runs])
      for number, runs in enumerate(logged)
      if runs and all(name in run for run in runs)
    )
    if curves:
      panels.append(Panel(name, curves))
  return panels, constant


def _rank(metric: str) -> tuple[int, str]:
  """Returns the place of a metric's panel; sorting keeps the order of logs."""
  for place, beginning in enumerate(_FIRST):
    if metric.startswith(beginning):
      return place, ""
  if metric in _LAST:
    return len(_FIRST) + 1 + _LAST.index(metric), ""
  return len(_FIRST), metric.partition("/")[0]


def _by_metric(
  records: Sequence[Mapping],
) -> dict[str, dict[int, float | None]]:
  """Returns metric to step to value, as they were logged."""
  found = {}
  for record in records:
    for name, value in record.items():
      if name in ("step", "kind"):
        continue
      is_number = type(value) in (int, float)
      found.setdefault(name, {})[record["step"]] = value if is_number else None
  return found


def _make_curve(
  number: int, points: Sequence[Mapping[int, float | None]]
) -> Curve:
  """Averages over seeds, at the steps that all of them have logged."""
  common = set.intersection(*map(set, points))
  steps = sorted(common)
  every = -(-len(steps) // POINTS) or 1
  # The last point says how the run ended.
  steps = sorted({*itertools.islice(steps, 0, None, every), *steps[-1:]})
  values = []
  for step in steps:
    of_seeds = [each[step] for each in points]
    known = [value for value in of_seeds if value is not None]
    values.append(
      estimates.over_seeds(known) if len(known) == len(of_seeds) else None
    )
  return Curve(number, steps, values)
