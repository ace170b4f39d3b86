"""Compares measured scores with those that a recipe declares."""

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence

import numpy as np

from mlir_jax.recipes import recipe as recipe_lib
from mlir_jax.recipes import tables

# Whose spread gives a tolerance.
MIN_SEEDS = 3
# Differences are rounded to so many digits before they are compared, since 0.84
# - 0.82 is not 0.02 in binary.
_DIGITS = 9


class Verdict(enum.StrEnum):
  """What is said of a score, or of a recipe."""

  PASS = "pass"
  FAIL = "fail"
  NOT_RUN = "not run"


@dataclasses.dataclass(frozen=True)
class Row:
  """A score and what is said of it.

  Attributes:
    table: The table of results.
    measure: The measure.
    name: The row of the table: a language or a group.
    expected: The declared value; None if nobody has measured it.
    tolerance: The greatest difference that passes; None without a value.
    by_seed: Seed to measured value; a seed without a value is left out.
    seeds: All seeds.
  """

  table: str
  measure: str
  name: str
  expected: float | None
  tolerance: float | None
  by_seed: Mapping[int, float]
  seeds: Sequence[int]

  @property
  def measured(self) -> float | None:
    """The mean over the seeds; None if one of them has no value."""
    if len(self.by_seed) < len(self.seeds):
      return None
    return float(np.mean(list(self.by_seed.values())))

  @property
  def spread(self) -> float | None:
    """The standard deviation over the seeds; None for one seed."""
    if len(self.by_seed) < 2 or self.measured is None:
      return None
    return float(np.std(list(self.by_seed.values()), ddof=1))

  @property
  def difference(self) -> float | None:
    """Measured minus expected; None if one of them is not known."""
    if self.measured is None or self.expected is None:
      return None
    return round(self.measured - self.expected, _DIGITS)

  @property
  def verdict(self) -> Verdict:
    """PASS within the tolerance; NOT_RUN if there is no declared value."""
    if self.expected is None:
      return Verdict.NOT_RUN
    assert self.tolerance is not None  # `recipe.Scores` needs it.
    # A value that is missing or not a number fails.
    if self.difference is not None and abs(self.difference) <= self.tolerance:
      return Verdict.PASS
    return Verdict.FAIL


def judge(
  recipe: recipe_lib.Recipe, measured: Mapping[int, Mapping[str, tables.Values]]
) -> list[Row]:
  """Returns a row for each score that the recipe names, in its order.

  Args:
    recipe: The recipe.
    measured: Seed to table to its values.
  """
  return [
    Row(
      table=scores.table,
      measure=scores.measure,
      name=name,
      expected=expected,
      tolerance=None if expected is None else scores.tolerance,
      by_seed={
        seed: of_tables[scores.table][scores.measure][name]
        for seed, of_tables in measured.items()
        if name in of_tables[scores.table].get(scores.measure, {})
      },
      seeds=tuple(measured),
    )
    for scores in recipe.scores
    for name, expected in scores.expected.items()
  ]


def overall(rows: Sequence[Row]) -> Verdict:
  """Returns the verdict on a recipe.

  A score that fails makes it FAIL. It is PASS only if a score passes; with
  nothing but rows that are not run, it is NOT_RUN.
  """
  found = {row.verdict for row in rows}
  for verdict in (Verdict.FAIL, Verdict.PASS):
    if verdict in found:
      return verdict
  return Verdict.NOT_RUN


def propose(scores: recipe_lib.Scores, rows: Sequence[Row]) -> str:
  """Returns measured scores as Python, for the file of the recipe.

  The tolerance is 3 standard deviations of the difference between another run
  and the mean of these n seeds: 3 s sqrt(1 + 1/n), rounded up to a multiple of
  0.005. s is the standard deviation over the seeds of the row where it is
  greatest.

  Args:
    scores: What the recipe declares; its values do not matter.
    rows: The rows of these scores, of `MIN_SEEDS` seeds or more.
  """
  count = len(rows[0].seeds)
  greatest = max(row.spread or 0.0 for row in rows)
  tolerance = 3 * greatest * math.sqrt(1 + 1 / count)
  tolerance = math.ceil(round(tolerance / 0.005, _DIGITS)) * 0.005
  lines = [f"  recipe.Scores(\n    {_quoted(scores.measure)},\n    {{"]
  for row in rows:
    value = "None" if row.measured is None else f"{row.measured:.3f}"
    lines.append(f"      {_quoted(row.name)}: {value},")
  lines += ["    },", f"    tolerance={tolerance:.3f},"]
  if scores.table != recipe_lib.TRAINING:
    lines.append(f"    table={_quoted(scores.table)},")
  return "\n".join([*lines, "  ),"])


def _quoted(text: str) -> str:
  return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
