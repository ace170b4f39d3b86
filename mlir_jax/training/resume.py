"""From which checkpoint a run goes on, and what it keeps of a change there."""

import dataclasses
import json
import time
from collections.abc import Mapping
from typing import Any

import ml_collections
from etils import epath

from mlir_jax import config as config_lib
from mlir_jax import workdir
from mlir_jax.checkpoints import manager
from mlir_jax.hosts import multihost
from mlir_jax.storage import reading, writing


@dataclasses.dataclass(frozen=True)
class Start:
  """Where a run goes on.

  Attributes:
    step: The checkpoint's step; None for a new run.
    from_step: Whether it was named and the run goes back to it; then later
      checkpoints are removed.
    changed: Field to [value before, value now]; before is what the step was
      trained with.
  """

  step: int | None
  from_step: bool = False
  changed: Mapping[str, list[Any]] = dataclasses.field(default_factory=dict)


def choose(
  config: ml_collections.ConfigDict,
  folder: str,
  checkpoints: manager.Checkpoints,
  from_step: int | None,
) -> Start:
  """Chooses the checkpoint to go on from; changes nothing.

  A launcher gives the same command again, with --from_step. So where the run
  has gone on from that step with this config before, it goes on from its last
  checkpoint.

  Args:
    config: The run's config, which `workdir.claim` has passed.
    folder: The run's folder.
    checkpoints: Its checkpoints.
    from_step: The step that was named, if one was.

  Raises:
    ValueError: if there is no such checkpoint, or the last one is of another
      config than the folder's.
  """
  last = checkpoints.last_step()
  if last is None:
    return Start(None)
  values, defaults = config.to_dict(), config_lib.default().to_dict()
  kept = reading.read_json(epath.Path(folder) / workdir.CONFIG_FILE)
  changed = workdir.differences(values, kept, defaults)
  history = workdir.read_history(folder)
  step = last
  if from_step is not None and (
    changed or not history or not _is_from(history[-1], from_step)
  ):
    step = checkpoints.find(from_step)
    if step > config.train.steps:
      raise ValueError(
        f"train.steps is {config.train.steps}, less than --from_step={step}:"
        " there would be nothing to train."
      )
  elif from_step is not None:
    print(
      f"This run has gone on from step {from_step} before ({workdir.HISTORY}):"
      " it goes on from its last checkpoint."
    )
    from_step = None
  # config.json may have been exchanged, and may be of later steps: the
  # checkpoint has what it was trained with.
  trained_with = workdir.differences(
    values, checkpoints.read_description(step).config, defaults
  )
  if from_step is not None:
    changed = trained_with
  else:  # But for what changed just there.
    known = {
      name
      for record in history
      if record["step"] == step
      for name in record["changed"]
    }
    trained_with = {
      name: pair for name, pair in trained_with.items() if name not in known
    }
  where = f"The checkpoint of step {step} in {checkpoints.directory}"
  workdir.refuse_changes(values, trained_with, where, from_step)
  return Start(step, from_step is not None, changed)


def _is_from(record: Mapping[str, Any], step: int) -> bool:
  """Whether a line of the history says that step, and that it was named."""
  return record["from_step"] and record["step"] == step


def go_on(
  start: Start,
  config: ml_collections.ConfigDict,
  folder: str,
  checkpoints: manager.Checkpoints,
) -> list[dict[str, Any]]:
  """Makes the folder one of a run that goes on there; its start is certain.

  All processes of a run call it. Later checkpoints and results go first, and
  the config is kept last: killed in between, the same command does it again.

  Args:
    start: From `choose`.
    config: The run's config.
    folder: The run's folder.
    checkpoints: Its checkpoints.

  Returns:
    The run's history.
  """
  history = workdir.read_history(folder)
  # All have read it, and the config, before it is written anew.
  multihost.check_in(
    "going on", {"from step": start.step, "changed": dict(start.changed)}
  )
  if not start.from_step and not start.changed:
    return history
  assert start.step is not None  # A new run has neither.
  removed = checkpoints.remove_after(start.step) if start.from_step else []
  history.append(
    {
      "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
      "step": start.step,
      "from_step": start.from_step,
      "changed": dict(start.changed),
      "removed": removed,
    }
  )
  if multihost.is_first():
    if start.from_step:
      _remove_results(epath.Path(folder) / workdir.RESULTS, start.step)
    writing.write_aside(
      f"{folder}/{workdir.HISTORY}",
      "".join(json.dumps(record) + "\n" for record in history),
    )
    writing.write_aside(
      f"{folder}/{workdir.CONFIG_FILE}",
      json.dumps(config.to_dict(), indent=2) + "\n",
    )
  for name, (before, now) in start.changed.items():
    print(f"From step {start.step} on, {name} is {now!r}; it was {before!r}.")
  if removed:
    print(f"The later checkpoints were removed: of the steps {removed}.")
  return history


def _remove_results(folder: epath.Path, step: int) -> None:
  """Removes the tables of steps that are taken again."""
  for path in list(folder.glob("step-*")):
    number = path.name.removeprefix("step-").removesuffix(".json")
    if number.isdecimal() and int(number) > step:
      if path.is_dir():
        path.rmtree()
      else:
        path.unlink()
