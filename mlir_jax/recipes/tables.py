"""Reads the values of a table of results, of training or of an evaluation."""

import os
from collections.abc import Mapping

from etils import epath

from mlir_jax.evals import report
from mlir_jax.storage import reading

FILE = "report.json"

# Measure to row to value.
Values = Mapping[str, Mapping[str, float]]


def read(folder: str | os.PathLike) -> tuple[int, Values]:
  """Reads the last step of a table.

  Args:
    folder: The folder of the table.

  Returns:
    The step, and its values. A row is a language, "en (dev)", or the name of a
    group, for the mean of the group. The metric of an evaluator of the user is
    the row of a measure that has the name of the evaluator.

  Raises:
    UnreadableError: if the table is missing or damaged, or has no step.
  """
  path = epath.Path(folder) / FILE
  table = reading.read_json(path, mend=report.MAKE_AGAIN)
  try:
    steps = {
      int(column.removeprefix("step ").replace(",", "")): column
      for column in table["columns"]
      if column.startswith("step ")
    }
    if not steps:
      raise ValueError("it has no column of a step")
    last = max(steps)
    column = steps[last]
    values: dict[str, dict[str, float]] = {}
    for row in table["rows"]:
      name = row["group"] if row["label"] == "mean" else row["label"]
      for measure, found in row["values"].items():
        if found[column] is not None:
          values.setdefault(measure, {})[name] = float(found[column])
    for evaluator, metrics in table["extra"].items():
      for metric, found in metrics.items():
        if found[column] is not None:
          values.setdefault(evaluator, {})[metric] = float(found[column])
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise reading.UnreadableError(
      f"{path} is not a table of a run: {error!r}. {report.MAKE_AGAIN}"
    ) from error
  return last, values


def written(folder: str | os.PathLike) -> float:
  """Returns when a table was written, in seconds; 0 if there is no table."""
  path = epath.Path(folder) / FILE
  return path.stat().mtime if path.exists() else 0.0


def last_step(folder: str | os.PathLike) -> int | None:
  """Returns the last step of a table; None if there is no table yet."""
  if not (epath.Path(folder) / FILE).exists():
    return None
  return read(folder)[0]
