"""Chooses the checkpoint that a run goes on from, and records the choice."""

import dataclasses
import json
import time
from collections.abc import Mapping
from typing import Any

from etils import epath

from mlir_jax import workdir
from mlir_jax.checkpoints import manager
from mlir_jax.hosts import multihost
from mlir_jax.storage import reading, writing


@dataclasses.dataclass(frozen=True)
class Start:
  """Where a run starts or goes on.

  Attributes:
    step: The checkpoint's step; None for a new run.
    from_step: Whether --from_step named it. The run then goes back to it, and
      later checkpoints are removed.
    changed: Field to [value that the checkpoint was trained with, value now].
  """

  step: int | None
  from_step: bool = False
  changed: Mapping[str, list[Any]] = dataclasses.field(default_factory=dict)


def choose(
  config: Mapping[str, Any],
  defaults: Mapping[str, Any],
  folder: str,
  checkpoints: manager.Checkpoints,
  from_step: int | None,
) -> Start:
  """Chooses the checkpoint to go on from; it changes nothing.

  A launcher restarts a run with the same command, --from_step included. So if
  the run already went on from that step with this config, the last checkpoint
  is chosen.

  Args:
    config: The run's config as a plain dict; `workdir.claim` accepted it.
    defaults: The default config as a plain dict.
    folder: The run's folder.
    checkpoints: The run's checkpoints.
    from_step: The step that --from_step names, or None.

  Raises:
    ValueError: if there is no such checkpoint, or if the chosen one was trained
      with another config.
  """
  last = checkpoints.last_step()
  if last is None:
    return Start(None)
  kept = reading.read_json(epath.Path(folder) / workdir.CONFIG_FILE)
  changed = workdir.differences(config, kept, defaults)
  history = workdir.read_history(folder)
  step = last
  if from_step is not None and (
    changed or not history or not _is_from(history[-1], from_step)
  ):
    step = checkpoints.find(from_step)
    steps = config["train"]["steps"]
    if step > steps:
      raise ValueError(
        f"train.steps is {steps}, less than --from_step={step}:"
        " there would be nothing to train."
      )
  elif from_step is not None:
    print(
      f"This run has gone on from step {from_step} before ({workdir.HISTORY}):"
      " it goes on from its last checkpoint."
    )
    from_step = None
  # config.json may have been replaced, or may belong to later steps. The
  # checkpoint itself says what it was trained with.
  trained_with = workdir.differences(
    config, checkpoints.read_description(step).config, defaults
  )
  if from_step is not None:
    changed = trained_with
  else:  # The history already records the changes at this very step.
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
  workdir.refuse_changes(config, trained_with, where, from_step)
  return Start(step, from_step is not None, changed)


def _is_from(record: Mapping[str, Any], step: int) -> bool:
  """Whether a line of the history says that --from_step named this step."""
  return record["from_step"] and record["step"] == step


def go_on(
  start: Start,
  config: Mapping[str, Any],
  folder: str,
  checkpoints: manager.Checkpoints,
) -> list[dict[str, Any]]:
  """Records in the folder that the run goes on; all processes call it.

  It is called when nothing can refuse the run any more. It removes later
  checkpoints and results first and writes the config last. If it is killed in
  between, the same command does it again.

  Args:
    start: From `choose`.
    config: The run's config as a plain dict.
    folder: The run's folder.
    checkpoints: The run's checkpoints.

  Returns:
    The run's history.
  """
  history = workdir.read_history(folder)
  # All processes have read the history and the config before process 0 writes.
  multihost.check_in(
    "going on", {"from step": start.step, "changed": dict(start.changed)}
  )
  if not start.from_step and not start.changed:
    return history
  assert start.step is not None  # A new run has no changes.
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
      json.dumps(config, indent=2) + "\n",
    )
  for name, (before, now) in start.changed.items():
    print(f"From step {start.step} on, {name} is {now!r}; it was {before!r}.")
  if removed:
    print(f"The later checkpoints were removed: of the steps {removed}.")
  return history


def _remove_results(folder: epath.Path, step: int) -> None:
  """Removes the result tables of steps that will be taken again."""
  for path in list(folder.glob("step-*")):
    # step-N.json, step-N.intervals.json and the folder step-N.
    number = path.name.removeprefix("step-").partition(".")[0]
    if number.isdecimal() and int(number) > step:
      if path.is_dir():
        path.rmtree()
      else:
        path.unlink()
