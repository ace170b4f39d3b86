"""Reads the folders of runs, and folders of results without a run."""

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from mlir_jax import workdir
from mlir_jax.evals import report
from mlir_jax.hub import run_facts
from mlir_jax.reporting import column_files
from mlir_jax.storage import locations, reading
from mlir_jax.training import progress


@dataclasses.dataclass(frozen=True)
class Run:
  """A run, or an evaluation of another model.

  Attributes:
    path: Its folder.
    name: What the reader sees; no other run has it.
    config: Field to value, "optim.learning_rate" to 1e-3. Empty if there is no
      config, as for a model that was not trained here.
    metrics: The records of metrics.jsonl.
    columns: Its results by step.
    groups: Language to its group in training.
    shared: As in `rendering.to_text`.
    notes: Sentences on how values were measured.
    day: When its newest results were written (UTC), "2026-11-30".
  """

  path: str
  name: str
  config: Mapping[str, Any]
  metrics: Sequence[Mapping[str, Any]]
  columns: Sequence[column_files.Column]
  groups: Mapping[str, str]
  shared: Mapping[str, Mapping[str, int]]
  notes: Sequence[str]
  day: str


def read(paths: Sequence[str]) -> list[Run]:
  """Reads runs.

  Args:
    paths: Folders of runs, or folders of results that `mlir_jax.evaluate` has
      written (--output).

  Raises:
    ValueError: if a folder is given twice, is missing, or has neither results
      nor metrics.
    UnreadableError: if a file is damaged; it names the file.
  """
  absolute = [locations.absolute(path) for path in paths]
  for path in absolute:
    if absolute.count(path) > 1:
      raise ValueError(f"{path} is given twice.")
    locations.check_packages(path)
  names = _short_names(absolute)
  return [_read(*pair) for pair in zip(absolute, names, strict=True)]


def _short_names(paths: Sequence[str]) -> list[str]:
  """Names folders by the last parts of their paths, as few as differ."""
  parts = [path.strip("/").split("/") for path in paths]
  for count in range(1, max(map(len, parts), default=0) + 1):
    names = ["/".join(each[-count:]) for each in parts]
    if len(set(names)) == len(names):
      return names
  return list(paths)


def _read(path: str, name: str) -> Run:
  folder = epath.Path(path)
  if not folder.is_dir():
    raise ValueError(f"{path} is not a folder: give the folder of a run.")
  is_run = (folder / workdir.CONFIG_FILE).exists()
  results = folder / workdir.RESULTS if is_run else folder
  # `mlir_jax.evaluate` writes into the run's folder by default.
  config = (folder if is_run else folder.parent) / workdir.CONFIG_FILE
  steps = {
    int(found.stem.removeprefix("step-")): found
    for found in results.glob("step-*.json")
    if found.stem.removeprefix("step-").isdecimal()
  }
  metrics = progress.read_metrics(path) if is_run else []
  if not steps and not metrics:
    raise ValueError(
      f"{path} has neither {progress.METRICS_FILE} nor results (step-N.json):"
      " give the folder of a run, or of mlir_jax.evaluate."
    )
  groups, shared, notes = {}, {}, []
  table = results / "report.json"
  if table.exists():
    groups, shared = run_facts.read_report(table)
    notes = reading.read_json(table, mend=report.MAKE_AGAIN).get("notes", [])
  columns = [
    column_files.read(steps[step], f"step {step:,}") for step in sorted(steps)
  ]
  newest = max(
    (found.stat().mtime for found in steps.values()),
    default=(folder / progress.METRICS_FILE).stat().mtime if metrics else 0,
  )
  return Run(
    path,
    name,
    workdir.flatten(reading.read_json(config)) if config.exists() else {},
    metrics,
    [column for column in columns if column.results],
    groups,
    shared,
    [str(note) for note in notes] if isinstance(notes, list) else [],
    datetime.datetime.fromtimestamp(newest, datetime.UTC).date().isoformat(),
  )
