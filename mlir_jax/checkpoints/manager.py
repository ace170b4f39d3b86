"""Saves and restores the checkpoints of a run, with orbax.

A checkpoint holds the training state and a description. Saves run in the
background. Orbax writes aside and renames, so a killed save leaves the
checkpoint before it.
"""

import functools
import json
import logging
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath
from orbax.checkpoint import checkpoint_managers

from mlir_jax.checkpoints import damage, listing, metadata
from mlir_jax.hosts import multihost
from mlir_jax.storage import locations, writing

STATE = "state"
DESCRIPTION = "description"
METRIC = "dev"
AVERAGE = "average:"  # And the number of checkpoints.
# Where orbax stores the dev metric of a checkpoint.
_METRICS = "metrics/metrics"


def _is_of_interest(record: logging.LogRecord) -> bool:
  """Whether a line of absl's log is printed.

  Orbax warns of what we intend. It also logs the traceback of each error that
  it raises.
  """
  return "orbax" not in record.pathname or (
    record.levelno >= logging.ERROR and not record.exc_info
  )


absl_logging.get_absl_logger().addFilter(_is_of_interest)


class NotEvaluatedError(ValueError):
  """There is no best checkpoint, since none was evaluated."""


class SaveError(OSError):
  """A checkpoint was not saved; the message names the one before it."""


class Checkpoints:
  """The checkpoints of a run: the last few, and the best on dev."""

  def __init__(
    self,
    directory: str,
    keep: int = 2,
    *,
    read_only: bool = False,
    alone: bool = False,
  ):
    """Opens the folder and removes what a killed save left behind.

    Args:
      directory: The folder, an absolute path; made if missing.
      keep: How many of the last checkpoints stay, besides the best one.
      read_only: Whether nothing is changed: a run may be saving there.
      alone: Whether this process of several opens it without the others.

    Raises:
      DamagedError: if orbax cannot open it because of a damaged checkpoint.
    """
    self.directory = epath.Path(directory)
    self._saving: list[int] = []
    self._unchecked: int | None = None  # The save that may still fail.
    self._processes = ocp.options.MultiprocessingOptions()
    if alone:
      process = jax.process_index()
      self._processes = ocp.options.MultiprocessingOptions(
        primary_host=process,
        active_processes={process},
        barrier_sync_key_prefix=f"process_{process}",
      )
    options = ocp.CheckpointManagerOptions(
      best_fn=lambda metrics: metrics[METRIC],
      best_mode="max",
      create=not alone,
      read_only=read_only,
      cleanup_tmp_directories=not read_only,
      multiprocessing_options=self._processes,
      async_options=ocp.AsyncOptions(
        post_finalization_callback=self._list_saved
      ),
      preservation_policy=checkpoint_managers.AnyPreservationPolicy(
        [
          checkpoint_managers.LatestN(keep),
          checkpoint_managers.BestN(
            get_metric_fn=lambda metrics: metrics[METRIC],
            n=1,
            keep_checkpoints_without_metrics=False,
          ),
        ]
      ),
    )
    for step in listing.steps(directory):
      if not (self.directory / str(step)).is_dir():
        reason = f"{self.directory / str(step)} is not a folder"
        raise damage.damaged(self.directory, step, reason, opens=False)
    try:
      self._manager = ocp.CheckpointManager(
        self.directory, options=options, item_names=(STATE, DESCRIPTION)
      )
    except Exception:
      for step in reversed(listing.steps(directory)):
        if reason := damage.find(self.directory, step):
          raise damage.damaged(
            self.directory, step, reason, opens=False
          ) from None
      raise

  def save(
    self,
    step: int,
    state: Any,
    description: metadata.Description,
    dev: float | None = None,
  ) -> None:
    """Starts saving; returns when the arrays may be donated.

    Args:
      step: Steps taken.
      state: The training state, a tree of `jax.Array`s.
      description: What is saved with the state.
      dev: The dev metric that selects of this state, if it was evaluated.

    Raises:
      FloatingPointError: if an array holds NaN or infinity; it names the
        arrays.
      SaveError: if the save before this one failed.
    """
    self._check_finite(step, state)
    self.check_saved(wait=True)
    if jax.default_backend() == "cpu":
      # Orbax reads the memory of a CPU device in the background, while the next
      # step would overwrite the donated arrays. It copies those of other
      # devices.
      state = jax.tree.map(lambda leaf: leaf.copy(), state)
    self._saving.append(step)
    self._manager.save(
      step,
      args=ocp.args.Composite(
        **{
          STATE: ocp.args.StandardSave(state),
          DESCRIPTION: ocp.args.JsonSave(description.to_json()),
        }
      ),
      metrics=None if dev is None else {METRIC: dev},
      force=True,
    )
    self._unchecked = step

  def _check_finite(self, step: int, state: Any) -> None:
    """Raises FloatingPointError if an array holds NaN or infinity."""
    finite = jax.device_get(_finite(state))
    bad = [
      jax.tree_util.keystr(path, simple=True, separator="/")
      for path, good in jax.tree_util.tree_leaves_with_path(finite)
      if not good
    ]
    if bad:
      more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
      raise FloatingPointError(
        f"Step {step:,} is not saved: {', '.join(bad[:3])}{more} held NaN or"
        f" infinity. {self._saved_before(step)}"
      )

  def _saved_before(self, step: int) -> str:
    """Names the checkpoint before one that was not saved, in a sentence."""
    steps = [saved for saved in self._manager.all_steps() if saved < step]
    if not steps:
      return "There is no other checkpoint."
    return f"The last checkpoint is that of step {max(steps):,}."

  def check_saved(self, wait: bool = False) -> None:
    """Raises the error of a save that failed in the background, once.

    While a save goes on, and after it has ended, a call costs almost nothing.

    Args:
      wait: Whether to wait until the save has ended.

    Raises:
      SaveError: if the save failed.
    """
    if self._unchecked is None:
      return
    if not wait and self._manager.is_saving_in_progress():
      return
    step, self._unchecked = self._unchecked, None
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      reason = str(error).strip().partition("\n")[0] or type(error).__name__
      raise SaveError(
        f"Saving step {step:,} to {self.directory} failed: {reason}."
        f" {self._saved_before(step)}"
      ) from error

  def find(self, which: str | int) -> int:
    """Returns the step of a checkpoint.

    Args:
      which: "last", "best" on dev, or a step.

    Raises:
      NotEvaluatedError: if there is no best checkpoint.
      DamagedError: if a dev metric is not as it was saved.
      ValueError: if there is no such checkpoint; it lists the existing ones.
    """
    steps = sorted(self._manager.all_steps())
    if which == "last" and steps:
      return steps[-1]
    if which == "best":
      evaluated = {
        step: self._dev(step) for step in steps if self.evaluated(step)
      }
      if evaluated:
        return max(evaluated, key=evaluated.__getitem__)
      raise NotEvaluatedError(
        f"No checkpoint in {self.directory} was evaluated on a dev set"
        f" (eval.every); use 'last' or one of {steps}."
      )
    if str(which).isdigit() and int(which) in steps:
      return int(which)
    raise ValueError(
      f"{self.directory} has no checkpoint {which!r}; it has {steps}."
    )

  def find_all(self, which: str | int) -> list[int]:
    """Returns the steps of the checkpoints whose mean is asked for.

    Args:
      which: As in `find`, which is one step; or "average:N" for the last N.

    Raises:
      ValueError: if there are fewer checkpoints, or as `find` does.
    """
    if not str(which).startswith(AVERAGE):
      return [self.find(which)]
    amount = str(which).removeprefix(AVERAGE)
    if not re.fullmatch("[1-9][0-9]{0,5}", amount) or int(amount) < 2:
      raise ValueError(
        f"{which!r} is not a checkpoint: write {AVERAGE}N, where N is 2 or"
        " more."
      )
    count = int(amount)
    steps = sorted(self._manager.all_steps())[-count:]
    # The best checkpoint may be there, too, and be much older.
    kept = count
    if steps:
      kept = self.read_description(steps[-1]).config["train"]["keep"]
    if len(steps) < count or kept < count:
      raise ValueError(
        f"{which!r} needs the last {count} checkpoints, but {self.directory}"
        f" has {steps}, of a run that keeps {kept} (train.keep): average"
        " fewer, or train with a larger train.keep."
      )
    return steps

  def restore_mean(self, steps: Sequence[int], target: Any) -> Any:
    """Reads the mean of the parameters of some checkpoints.

    Memory holds the parameters of two checkpoints. The mean of one checkpoint
    has its own parameters, bit for bit.

    Args:
      steps: From `find_all`.
      target: As in `restore`.
    """
    mean = self.restore_params(steps[0], target)
    for count, step in enumerate(steps[1:], start=2):
      mean = _towards(mean, self.restore_params(step, target), 1 / count)
    return mean

  def last_step(self) -> int | None:
    """Returns the step of the last checkpoint; None if there is none."""
    return self._manager.latest_step()

  def evaluated(self, step: int) -> bool:
    """Whether a checkpoint has a dev metric."""
    return self._manager.metrics(step) is not None

  def _dev(self, step: int) -> float:
    """Reads the dev metric of a checkpoint that has one."""
    part = _METRICS.partition("/")[0]
    reason = damage.find(self.directory, step, f"{part}/")
    metrics = self._manager.metrics(step)
    value: Any = metrics.get(METRIC) if isinstance(metrics, Mapping) else None
    if type(value) not in (int, float) or not math.isfinite(value):
      reason = reason or (
        f"{self.directory / str(step) / _METRICS} has no number {METRIC!r}"
      )
    if reason:
      raise damage.damaged(self.directory, step, reason)
    return value

  def add_metric(self, step: int, dev: float) -> None:
    """Adds the dev metric to a checkpoint that was saved without it.

    All processes of a run call it.
    """
    with multihost.first("it writes the dev metric"):
      if multihost.is_first():
        path = self.directory / str(step) / _METRICS
        writing.write_aside(str(path), json.dumps({METRIC: dev}))
        if not locations.is_url(str(path)):
          damage.write_list(pathlib.Path(self.directory) / str(step))
    self._manager.reload()

  def remove_after(self, step: int) -> list[int]:
    """Removes later checkpoints; returns their steps. All processes call it."""
    later = [other for other in self._manager.all_steps() if other > step]
    for other in later:
      self._manager.delete(other)
    return sorted(later)

  def _list_saved(self) -> None:
    """Lists the files of a checkpoint, just before orbax renames it."""
    step = self._saving.pop()
    if multihost.is_first() and not locations.is_url(str(self.directory)):
      (folder,) = pathlib.Path(self.directory).glob(f"{step}.*")
      damage.write_list(folder)

  def read_description(self, step: int) -> metadata.Description:
    """Reads the description of a checkpoint.

    Raises:
      DamagedError: if it cannot be read.
    """
    return read_description(self.directory, step)

  def restore(self, step: int, target: Any) -> Any:
    """Reads the training state onto any mesh.

    Args:
      step: From `find`.
      target: `jax.ShapeDtypeStruct`s with shardings, a tree like the state.

    Returns:
      The state, bit for bit as it was saved.

    Raises:
      DamagedError: if the checkpoint is damaged.
    """
    if multihost.is_first():  # If it fails here, all processes end.
      damage.check(self.directory, step)
    try:
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(**{STATE: ocp.args.StandardRestore(target)}),
      )
    except Exception as error:
      raise damage.unreadable(self.directory, step, error) from error
    return restored[STATE]

  def restore_params(self, step: int, target: Any) -> Any:
    """Reads only the parameters; see `restore`.

    It checks the files of the whole state, since orbax packs parameters and
    moments into the same files.
    """
    if multihost.is_first():
      damage.check(self.directory, step, f"{STATE}/")
    handler = ocp.PyTreeCheckpointHandler(
      multiprocessing_options=self._processes
    )
    try:
      with ocp.Checkpointer(
        handler, multiprocessing_options=self._processes
      ) as reader:
        restored = reader.restore(
          self.directory / str(step) / STATE,
          args=ocp.args.PyTreeRestore(
            item={"params": target},
            restore_args=ocp.checkpoint_utils.construct_restore_args(
              {"params": target}
            ),
            partial_restore=True,
          ),
        )
    except Exception as error:
      raise damage.unreadable(self.directory, step, error) from error
    return restored["params"]

  def wait(self) -> None:
    """Waits until the last save has ended; raises as `check_saved`."""
    self.check_saved(wait=True)

  def close(self) -> None:
    """Waits for the last save, then closes orbax; raises as `check_saved`."""
    try:
      self.check_saved(wait=True)
    finally:
      self._manager.close()


@functools.partial(jax.jit, donate_argnums=0)
def _towards(mean: Any, params: Any, share: float) -> Any:
  """Moves a mean towards the next parameters, by a share of the way."""
  return jax.tree.map(
    lambda old, new: old + (share * (new - old)).astype(old.dtype), mean, params
  )


@jax.jit
def _finite(tree: Any) -> Any:
  """Whether each array of a tree is finite, bool []."""
  return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), tree)


def read_description(
  directory: str | os.PathLike, step: int
) -> metadata.Description:
  """Reads the description of a checkpoint.

  Other checkpoints in the folder may be damaged. One process of several may
  call it alone.

  Args:
    directory: The folder of all checkpoints.
    step: The step of the checkpoint.

  Raises:
    DamagedError: if it cannot be read.
  """
  path = epath.Path(directory) / str(step) / DESCRIPTION
  damage.check(directory, step, f"{DESCRIPTION}/")
  try:
    values = ocp.JsonCheckpointHandler().restore(path)
  except Exception as error:
    raise damage.unreadable(directory, step, error) from error
  try:
    return metadata.Description.from_json(values)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


def read_config(
  directory: str, from_step: int | None = None
) -> tuple[int, Mapping[str, Any]]:
  """Reads the run's config from the last checkpoint in a folder.

  Args:
    directory: The folder of all checkpoints.
    from_step: The step that the user named, or None. If the last checkpoint is
      damaged, this one is read.

  Returns:
    The step and the config.

  Raises:
    DamagedError: if the checkpoint is damaged.
    ValueError: if there is none.
  """
  found = listing.steps(directory)
  if not found:
    raise ValueError(
      f"{directory} has no whole checkpoint: a save was killed there. Remove"
      " the folder, or give another --workdir."
    )
  try:
    return found[-1], read_description(directory, found[-1]).config
  except damage.DamagedError:
    if from_step not in found[:-1]:
      raise
    return from_step, read_description(directory, from_step).config
