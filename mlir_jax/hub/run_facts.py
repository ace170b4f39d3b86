"""What a run's folder says for the model card: results and rows."""

import dataclasses
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from etils import epath

from mlir_jax import workdir
from mlir_jax.data import token_store
from mlir_jax.evals import report
from mlir_jax.storage import reading

_SHARED = {"queries", "shared_queries", "passages", "shared_passages"}


@dataclasses.dataclass(frozen=True)
class Results:
  """The results of a checkpoint on a collection's tests.

  Attributes:
    collection: The collection's name.
    values: {"test/de/mrr@100": value}.
    groups: Language to its group in the report.
    shared: As in `rendering.to_text`.
  """

  collection: str
  values: Mapping[str, float]
  groups: Mapping[str, str]
  shared: Mapping[str, Mapping[str, int]]


def find_results(
  run_folder: epath.Path,
  config: Mapping[str, Any],
  step: int,
  evaluated: str = "",
) -> list[Results]:
  """Returns the results of a step in a run's folder.

  The results of the training come first, then those of `mlir_jax.evaluate`.

  Args:
    run_folder: The run's folder.
    config: The run's config.
    step: The step.
    evaluated: From `workdir.evaluated`: "" for a checkpoint as it was trained,
      else for the mean of several checkpoints, or for cut vectors.
  """
  found = {}
  folders = [
    folder
    for folder in run_folder.glob("evaluate-*")
    if workdir.is_evaluated(folder.name, evaluated)
  ]
  if not evaluated:
    folders.append(run_folder / workdir.RESULTS)
  for folder in sorted(folders, key=lambda folder: folder.name, reverse=True):
    path = folder / f"step-{step}.json"
    if not path.exists():
      continue
    if folder.name == workdir.RESULTS:
      name = collection_name(config)
    else:  # evaluate-COLLECTION-CHECKPOINT
      name = folder.name.split("-", 1)[1].rsplit("-", 1)[0]
    groups, shared = {}, {}
    if (folder / "report.json").exists():
      groups, shared = read_report(folder / "report.json")
    values = report.read_results(path)
    if values:
      found.setdefault(name, Results(name, values, groups, shared))
  return list(found.values())


def read_report(
  path: epath.Path,
) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
  """Reads each language's group, and the counts shared with training."""
  table = reading.read_json(path, mend=report.MAKE_AGAIN)
  groups = {}
  try:
    for row in table["rows"]:
      if len(row["languages"]) == 1:
        groups[row["languages"][0]] = row["group"]
    shared = {
      language: {kind: int(count) for kind, count in counts.items()}
      for language, counts in table["shared_with_training"].items()
    }
    if not all(isinstance(text, str) for text in (*groups, *groups.values())):
      raise TypeError(f"groups {groups}")
    if any(
      counts and not counts.keys() >= _SHARED for counts in shared.values()
    ):
      raise TypeError(f"shared_with_training {shared}")
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise ValueError(
      f"{path} is not a report: {error!r}. {report.MAKE_AGAIN}"
    ) from error
  return groups, shared


def find_rows(
  run_folder: epath.Path, left_out: Collection[str] = ()
) -> dict[str, dict[str, int]]:
  """Returns stream to language (or pair) to rows; {} without a token store.

  Args:
    run_folder: The run's folder.
    left_out: Sources whose rows are not counted, see
      `source_settings.left_out`.
  """
  path = run_folder / workdir.TOKEN_STORE / "meta.json"
  if not path.is_file():
    return {}
  groups = token_store.read_meta(path).get("groups", {})
  try:
    return {
      # An older store has the rows of each language.
      stream: groups[stream]
      if isinstance(groups[stream], dict)
      else token_store.language_rows(
        group
        for group in token_store.read_groups(groups[stream])
        if group.source not in left_out
      )
      for stream in token_store.STREAMS
    }
  except (KeyError, TypeError) as error:
    raise ValueError(
      f"{path}: groups is {groups!r}. {reading.RESTORE}"
    ) from error


def collection_name(config: Mapping[str, Any]) -> str:
  """Returns the collection's name; of a folder, the last part of its path."""
  data = config["data"]
  return pathlib.PurePath(data["root"] or data["collection"]).name
