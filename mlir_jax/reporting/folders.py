"""Reads the folders of runs, and folders of results without a run."""

import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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
    system: The name of its column, if it is no step of a run: "bm25"; else "".
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
  system: str
  config: Mapping[str, Any]
  metrics: Sequence[Mapping[str, Any]]
  columns: Sequence[column_files.Column]
  groups: Mapping[str, str]
  shared: Mapping[str, Mapping[str, int]]
  notes: Sequence[str]
  day: str


def read(paths: Sequence[str]) -> list[Run]:
  """Reads runs and other systems.

  Args:
    paths: Folders of runs, or folders of results that `mlir_jax.evaluate` has
      written (--output).

  Returns:
    For each folder the run, then each other column of its table, such as BM25.
    A column that is in several folders, with the same results, is there once.

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
  runs, seen = [], set()
  for path, name in zip(absolute, names, strict=True):
    for run in _read(path, name):
      key = json.dumps([run.name, run.columns[0].results]) if run.system else ""
      if key not in seen:
        runs.append(run)
      if key:
        seen.add(key)
  taken = [run.name for run in runs]
  return [
    dataclasses.replace(run, name=f"{run.path}: {run.name}")
    if taken.count(run.name) > 1
    else run
    for run in runs
  ]


def _short_names(paths: Sequence[str]) -> list[str]:
  """Names folders by the last parts of their paths, as few as differ."""
  parts = [path.strip("/").split("/") for path in paths]
  for count in range(1, max(map(len, parts), default=0) + 1):
    names = ["/".join(each[-count:]) for each in parts]
    if len(set(names)) == len(names):
      return names
  return list(paths)


def _read(path: str, name: str) -> list[Run]:
  """Reads the run of a folder, if there is one, then the other systems."""
  folder = epath.Path(path)
  if not folder.is_dir():
    raise ValueError(f"{path} is not a folder: give the folder of a run.")
  is_run = (folder / workdir.CONFIG_FILE).exists()
  results = folder / workdir.RESULTS if is_run else folder
  # `mlir_jax.evaluate` writes into the run's folder by default.
  config = (folder if is_run else folder.parent) / workdir.CONFIG_FILE
  steps = _find_steps(results)
  metrics = progress.read_metrics(path) if is_run else []
  table = _read_table(results / "report.json")
  if not steps and not metrics and not table.systems:
    raise ValueError(
      f"{path} has neither {progress.METRICS_FILE} nor results: give the folder"
      " of a run, or one that mlir_jax.evaluate has written."
    )
  run = Run(
    path=path,
    name=name,
    system="",
    config=workdir.flatten(reading.read_json(config))
    if config.exists()
    else {},
    metrics=metrics,
    columns=_read_columns({f"step {n:,}": steps[n] for n in sorted(steps)}),
    groups=table.groups,
    shared=table.shared,
    notes=table.notes,
    day=_day(
      [*steps.values(), *table.systems.values()]
      or [folder / progress.METRICS_FILE]
    ),
  )
  others = [
    dataclasses.replace(
      run,
      name=column.name,
      system=column.name,
      config={},
      metrics=[],
      columns=[column],
      shared={},
    )
    for column in _read_columns(table.systems)
  ]
  return [*[run] * bool(steps or metrics), *others]


def _find_steps(results: epath.Path) -> dict[int, epath.Path]:
  """Returns step to the file of its results."""
  return {
    int(found.stem.removeprefix("step-")): found
    for found in results.glob("step-*.json")
    if found.stem.removeprefix("step-").isdecimal()
  }


def _read_columns(
  files: Mapping[str, epath.Path],
) -> list[column_files.Column]:
  """Reads columns by their names; one without results is left out."""
  columns = [column_files.read(path, name) for name, path in files.items()]
  return [column for column in columns if column.results]


class _Table(NamedTuple):
  """What report.json says of languages and columns.

  Attributes:
    groups: As in `Run`.
    shared: As in `Run`.
    notes: As in `Run`.
    systems: The file of each column that is no step of a run, by its name.
  """

  groups: Mapping[str, str]
  shared: Mapping[str, Mapping[str, int]]
  notes: Sequence[str]
  systems: Mapping[str, epath.Path]


def _read_table(path: epath.Path) -> _Table:
  """Reads report.json; a missing file says nothing."""
  if not path.exists():
    return _Table({}, {}, [], {})
  groups, shared = run_facts.read_report(path)
  table = reading.read_json(path, mend=report.MAKE_AGAIN)
  lists = {field: table.get(field, []) for field in ("notes", "columns")}
  for field, texts in lists.items():
    if not isinstance(texts, list) or not all(
      isinstance(text, str) for text in texts
    ):
      raise reading.UnreadableError(
        f"{path}: {field} is {texts!r:.60}, not a list of texts."
        f" {report.MAKE_AGAIN}"
      )
  systems = {
    name: path.parent / f"{name}.json"
    for name in lists["columns"]
    if "/" not in name and (path.parent / f"{name}.json").exists()
  }
  return _Table(groups, shared, lists["notes"], systems)


def _day(files: Sequence[epath.Path]) -> str:
  """Returns when the newest file was written."""
  newest = max(file.stat().mtime for file in files)
  return str(datetime.datetime.fromtimestamp(newest, datetime.UTC).date())
