"""The verdict on a recipe as text and as JSON."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mlir_jax.recipes import judging
from mlir_jax.recipes import recipe as recipe_lib

MISSING = "–"


def to_text(rows: Sequence[judging.Row]) -> str:
  """Renders a line for each score, under its table and measure."""
  lines = []
  label = max(len(row.name) for row in rows)
  for (table, measure), group in itertools.groupby(
    rows, lambda row: (row.table, row.measure)
  ):
    lines += [
      f"{measure}, table {table}",
      f"  {'':<{label}}  {'expected':^15}  measured  difference  verdict",
    ]
    lines += [f"  {row.name:<{label}}  {_cells(row)}" for row in group]
    lines.append("")
  return "\n".join(lines)


def _cells(row: judging.Row) -> str:
  expected = MISSING
  if row.expected is not None:
    expected = f"{row.expected:.3f} ± {row.tolerance:.3f}"
  measured = MISSING if row.measured is None else f"{row.measured:.3f}"
  difference = MISSING if row.difference is None else f"{row.difference:+.3f}"
  return f"{expected:^15}  {measured:>8}  {difference:>10}  {row.verdict}"


def sentence(rows: Sequence[judging.Row]) -> str:
  """Says what the rows show together; it names each score that fails."""
  counts = {
    verdict: sum(row.verdict == verdict for row in rows)
    for verdict in judging.Verdict
  }
  not_run = counts[judging.Verdict.NOT_RUN]
  declared = len(rows) - not_run
  match judging.overall(rows):
    case judging.Verdict.NOT_RUN:
      return (
        "Not run: nobody has measured the scores of this recipe, so there is"
        " nothing to compare with. This does not show a reproduction."
      )
    case judging.Verdict.FAIL:
      text = (
        f"Fail: {counts[judging.Verdict.FAIL]} of the {declared} declared"
        f" scores are out of their tolerance: {'; '.join(_failures(rows))}."
      )
    case _:
      text = f"Pass: the {declared} declared scores are within their tolerance."
  if not_run:
    text += f" Not run, which is no pass: {not_run} more."
  return text


def _failures(rows: Sequence[judging.Row]) -> Iterator[str]:
  """Yields "mrr@100 of de, fr" for each table and measure."""
  failed = [row for row in rows if row.verdict == judging.Verdict.FAIL]
  for (table, measure), group in itertools.groupby(
    failed, lambda row: (row.table, row.measure)
  ):
    names = ", ".join(row.name for row in group)
    where = "" if table == recipe_lib.TRAINING else f" in {table}"
    yield f"{measure}{where} of {names}"


def baselines(found: Sequence[recipe_lib.Baseline]) -> str:
  """Renders published values: a line for each system; "" without any."""
  if not found:
    return ""
  lines = ["Published values, for comparison only; they are not judged."]
  width = max(len(each.system) for each in found)
  for measure in dict.fromkeys(name for each in found for name in each.values):
    systems = [each for each in found if measure in each.values]
    rows = list(
      dict.fromkeys(row for each in systems for row in each.values[measure])
    )
    with_mean = len(rows) > 1
    heads = "".join(f"{row:>6}" for row in [*rows, *["mean"] * with_mean])
    lines += ["", f"{measure:<{width}}{heads}"]
    for each in systems:
      of_system = each.values[measure]
      cells: list[float | None] = [of_system.get(row) for row in rows]
      if with_mean:
        # A mean over other rows would have another meaning.
        complete = len(of_system) == len(rows)
        cells.append(
          float(np.mean([*of_system.values()])) if complete else None
        )
      texts = [MISSING if cell is None else f"{cell:.3f}" for cell in cells]
      lines.append(
        f"{each.system:<{width}}" + "".join(f"{text:>6}" for text in texts)
      )
  lines += ["", *(f"{each.system}: {each.source}" for each in found), ""]
  return "\n".join(lines)


def to_json(rows: Sequence[judging.Row]) -> list[dict[str, Any]]:
  """Returns the rows as JSON, with the values unrounded."""
  return [
    {
      "table": row.table,
      "measure": row.measure,
      "row": row.name,
      "expected": row.expected,
      "tolerance": row.tolerance,
      "measured": row.measured,
      "difference": row.difference,
      "spread": row.spread,
      "by_seed": _by_seed(row.by_seed),
      "verdict": str(row.verdict),
    }
    for row in rows
  ]


def _by_seed(values: Mapping[int, float]) -> dict[str, float]:
  return {str(seed): value for seed, value in values.items()}


def baselines_to_json(
  found: Sequence[recipe_lib.Baseline],
) -> list[dict[str, Any]]:
  """Returns published values as JSON."""
  return [
    {
      "system": each.system,
      "source": each.source,
      "values": {name: dict(rows) for name, rows in each.values.items()},
    }
    for each in found
  ]
