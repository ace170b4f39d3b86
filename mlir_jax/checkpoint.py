"""Checkpoints: the only file that imports orbax.

A checkpoint holds the training state and a description: config, encoding
contract, encoder shape and provenance, all that is needed to encode with it.
Saves run in the background; orbax writes aside and renames, so that a killed
save leaves the checkpoint before it.

A checkpoint on a disk has a list of its files with their SHA-256, since what
reads the arrays does not see that a bit has changed. On object storage it has
none: to make and to compare one, each checkpoint would cross the network once
more. The storage itself keeps a checksum of what it stores; what is missing or
cut there orbax does not read, and it is told; and a description holds its own
hash.
"""

import dataclasses
import json
import logging
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath
from orbax.checkpoint import checkpoint_managers

from mlir_jax import contract as contract_lib
from mlir_jax.hosts import multihost
from mlir_jax.storage import digests, locations, reading, writing

STATE = "state"
DESCRIPTION = "description"
METRIC = "dev"
FILES = "files.json"  # The list of its files.
# Where orbax keeps the dev metric of a checkpoint.
_METRICS = "metrics/metrics"


class DamagedError(ValueError):
  """A checkpoint is not as it was saved; the message names step and file."""


def _is_of_interest(record: logging.LogRecord) -> bool:
  """Whether a line of absl's log is printed.

  Orbax warns of what is meant, and logs the traceback of each error that it
  raises as well.
  """
  return "orbax" not in record.pathname or (
    record.levelno >= logging.ERROR and not record.exc_info
  )


absl_logging.get_absl_logger().addFilter(_is_of_interest)


class NotEvaluatedError(ValueError):
  """There is no best checkpoint, since none was evaluated."""


class SaveError(OSError):
  """A checkpoint was not saved; the message names the one before it."""


@dataclasses.dataclass(frozen=True)
class Description:
  """What stands beside the arrays.

  Attributes:
    config: The run's config, as a plain dict.
    contract: The encoding contract.
    encoder: The encoder's shape: the fields of its config.
    provenance: Versions, commit, data fingerprints.
  """

  config: Mapping[str, Any]
  contract: contract_lib.EncodingContract
  encoder: Mapping[str, Any]
  provenance: Mapping[str, Any]

  def to_json(self) -> dict[str, Any]:
    """As a tree that JSON can hold, with a hash of it."""
    values = {
      "config": dict(self.config),
      "contract": self.contract.to_json(),
      "encoder": dict(self.encoder),
      "provenance": dict(self.provenance),
    }
    return {**values, "fingerprint": digests.of_value(values)}

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> "Description":
    """Reads what `to_json` made.

    Raises:
      ValueError: if it has changed since, or lacks something.
    """
    values = dict(values)
    # Descriptions of before have no hash.
    written = values.pop("fingerprint", None)
    if written is not None and written != digests.of_value(values):
      raise ValueError(
        "it has changed since it was saved, so its vectors would differ."
        f" {reading.RESTORE}"
      )
    names = {field.name for field in dataclasses.fields(cls)}
    if values.keys() != names or not isinstance(values["contract"], str):
      raise ValueError(
        f"it holds {sorted(values)}, not {sorted(names)}. {reading.RESTORE}"
      )
    for name in names - {"contract"}:
      if not isinstance(values[name], Mapping):
        raise ValueError(f"{name} is {values[name]!r}. {reading.RESTORE}")
    contract = contract_lib.EncodingContract.from_json(values["contract"])
    return cls(**{**values, "contract": contract})


class Checkpoints:
  """The checkpoints of one run: the last few, and the best by English dev."""

  def __init__(
    self,
    directory: str,
    keep: int = 2,
    *,
    read_only: bool = False,
    alone: bool = False,
  ):
    """Opens the folder, removing what a killed save left behind.

    Args:
      directory: The folder, an absolute path; made if missing.
      keep: How many of the last checkpoints stay, beside the best one.
      read_only: Leaves everything as it is: a run may be saving there.
      alone: Whether this process of several opens it without the others.

    Raises:
      DamagedError: if it cannot be opened because of a damaged checkpoint.
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
    for step in steps(directory):
      if not (self.directory / str(step)).is_dir():
        reason = f"{self.directory / str(step)} is not a folder"
        raise _damaged(self.directory, step, reason, opened=False)
    try:
      self._manager = ocp.CheckpointManager(
        self.directory, options=options, item_names=(STATE, DESCRIPTION)
      )
    except Exception:
      for step in reversed(steps(directory)):
        if reason := problem(self.directory, step):
          raise _damaged(self.directory, step, reason, opened=False) from None
      raise

  def save(
    self,
    step: int,
    state: Any,
    description: Description,
    dev: float | None = None,
  ) -> None:
    """Starts saving; returns once the arrays may be donated.

    Args:
      step: Steps taken.
      state: The training state, a tree of `jax.Array`s.
      description: What stands beside it.
      dev: The English dev metric of this state, if it was evaluated.

    Raises:
      FloatingPointError: if the state is not finite; it names the arrays.
      SaveError: if the save before this one failed.
    """
    self._check_finite(step, state)
    self.check_saved(wait=True)
    if jax.default_backend() == "cpu":
      # Orbax reads the CPU device's own memory in the background, which the
      # next step's donation would overwrite; of other devices it has a copy.
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
    """A sentence that names the checkpoint before one that was not saved."""
    steps = [saved for saved in self._manager.all_steps() if saved < step]
    if not steps:
      return "There is no other checkpoint."
    return f"The last checkpoint is that of step {max(steps):,}."

  def check_saved(self, wait: bool = False) -> None:
    """Raises the error of a save in the background, as soon as it failed.

    It costs next to nothing while a save goes on, and after it has ended.

    Args:
      wait: Whether to wait until it has ended.

    Raises:
      SaveError: if it failed.
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
    """The step of "last", of "best" by English dev, or of a number given.

    Raises:
      NotEvaluatedError: if there is no best one.
      DamagedError: if a dev metric is not as it was saved.
      ValueError: if there is no such checkpoint; it lists those there are.
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

  def last_step(self) -> int | None:
    """The step of the last checkpoint; None if there is none."""
    return self._manager.latest_step()

  def evaluated(self, step: int) -> bool:
    """Whether a checkpoint has a dev metric."""
    return self._manager.metrics(step) is not None

  def _dev(self, step: int) -> float:
    """The dev metric of a checkpoint that has one."""
    part = _METRICS.partition("/")[0]
    reason = problem(self.directory, step, f"{part}/")
    metrics = self._manager.metrics(step)
    value: Any = metrics.get(METRIC) if isinstance(metrics, Mapping) else None
    if type(value) not in (int, float) or not math.isfinite(value):
      reason = reason or (
        f"{self.directory / str(step) / _METRICS} has no number {METRIC!r}"
      )
    if reason:
      raise _damaged(self.directory, step, reason)
    return value

  def add_metric(self, step: int, dev: float) -> None:
    """Adds the dev metric to a checkpoint that was saved without.

    All processes of a run call it.
    """
    with multihost.first("it writes the dev metric"):
      if multihost.is_first():
        path = self.directory / str(step) / _METRICS
        writing.write_aside(str(path), json.dumps({METRIC: dev}))
        if not locations.is_url(str(path)):
          _write_list(pathlib.Path(self.directory) / str(step))
    self._manager.reload()

  def remove_after(self, step: int) -> list[int]:
    """Removes the later checkpoints; all processes of a run call it."""
    later = [other for other in self._manager.all_steps() if other > step]
    for other in later:
      self._manager.delete(other)
    return sorted(later)

  def _check_part(self, step: int, part: str = "") -> None:
    """Raises DamagedError if files of a part are not as they were saved."""
    if reason := problem(self.directory, step, part):
      raise _damaged(self.directory, step, reason)

  def _list_saved(self) -> None:
    """Lists the files of a checkpoint that is to get its name now."""
    step = self._saving.pop()
    if multihost.is_first() and not locations.is_url(str(self.directory)):
      (folder,) = pathlib.Path(self.directory).glob(f"{step}.*")
      _write_list(folder)

  def describe(self, step: int) -> Description:
    """Reads what stands beside the arrays.

    Raises:
      DamagedError: if it cannot be read.
    """
    return describe(self.directory, step)

  def restore(self, step: int, target: Any) -> Any:
    """Reads the state onto any mesh.

    Args:
      step: From `find`.
      target: `jax.ShapeDtypeStruct`s with shardings, a tree like the state.

    Returns:
      The state, bit for bit as it was saved.

    Raises:
      DamagedError: if it is not as it was saved.
    """
    if multihost.is_first():  # If it fails here, all processes end.
      self._check_part(step)
    try:
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(**{STATE: ocp.args.StandardRestore(target)}),
      )
    except Exception as error:
      raise _reading(self.directory, step, error) from error
    return restored[STATE]

  def restore_params(self, step: int, target: Any) -> Any:
    """Reads the parameters alone, as `restore` does the state.

    The files of the whole state are checked: orbax packs parameters and
    moments into the same ones.
    """
    if multihost.is_first():
      self._check_part(step, f"{STATE}/")
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
      raise _reading(self.directory, step, error) from error
    return restored["params"]

  def wait(self) -> None:
    """Waits until what was saved is on disk; raises as `check_saved`."""
    self.check_saved(wait=True)

  def close(self) -> None:
    """Waits and lets go of the folder; raises as `check_saved`."""
    try:
      self.check_saved(wait=True)
    finally:
      self._manager.close()


@jax.jit
def _finite(tree: Any) -> Any:
  """Whether each array of a tree is finite, bool []."""
  return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), tree)


def steps(directory: str | epath.Path) -> list[int]:
  """The steps of the checkpoints in a folder, in order; opens none."""
  folder = epath.Path(directory)
  if not folder.exists():
    return []
  # On a disk a save that was killed has left another name.
  may_be_killed = locations.is_url(str(directory))
  return sorted(
    int(path.name)
    for path in folder.iterdir()
    if path.name.isdecimal()
    and (not may_be_killed or ocp.utils.is_checkpoint_finalized(path))
  )


def problem(
  directory: str | epath.Path, step: int, part: str = ""
) -> str | None:
  """What is not as it was saved in a checkpoint; None if all is well.

  What was checked on this machine is not read again: see
  `digests.check`.

  Args:
    directory: The folder of all checkpoints.
    step: Which one.
    part: A folder in it, "description/"; "" for all.

  Returns:
    The first file that differs, and how. None, too, where there is no list.
  """
  if locations.is_url(str(directory)):
    return None
  folder = pathlib.Path(directory) / str(step)
  if not folder.is_dir():
    return f"{folder} is not a folder"
  if not any(folder.iterdir()):
    return f"{folder} is empty"
  if not (folder / FILES).exists():
    return None  # It is of before there were lists.
  try:
    listed = reading.read_json(folder / FILES)
    expected = {name: (size, digest) for name, (size, digest) in listed.items()}
  except (ValueError, TypeError, AttributeError) as error:
    return f"{folder / FILES} is not a list of files ({error})"
  hashes = {}
  for name, (size, digest) in expected.items():
    if not name.startswith(part):
      continue
    path = folder / name
    if not path.is_file():
      return f"{path} is missing"
    if path.stat().st_size != size:
      return f"{path} has {path.stat().st_size} bytes, not {size}"
    if size:
      hashes[name] = digest
  try:
    digests.check(folder, hashes, "")
  except reading.UnreadableError as error:
    return str(error).strip().removesuffix(".")
  return None


def _damaged(
  directory: epath.Path, step: int, reason: str, opened: bool = True
) -> DamagedError:
  """The error to raise for a damaged checkpoint.

  Args:
    directory: The folder of all checkpoints.
    step: Which one.
    reason: What is wrong.
    opened: Whether orbax opens the folder with this checkpoint in it.
  """
  older = next(
    (
      other
      for other in reversed(steps(directory))
      if other < step and not problem(directory, other)
    ),
    None,
  )
  hint = "No older checkpoint is whole: restore it from a copy."
  if older is not None:
    hint = (
      f"The checkpoint of step {older} is whole: train goes on from it with"
      f" --from_step={older}; other programs read it with"
      f" --checkpoint={older}"
    )
    if not opened:
      hint += f", once {directory / str(step)} is moved elsewhere"
    hint += "."
  return DamagedError(
    f"The checkpoint of step {step} is damaged: {reason}. {hint}"
  )


def _reading(directory: epath.Path, step: int, error: Exception) -> Exception:
  """The error to raise where a checkpoint could not be read."""
  listed = (directory / str(step) / FILES).exists()
  # If the files are as they were saved it is another kind of error.
  if listed or isinstance(error, jax.errors.JaxRuntimeError | MemoryError):
    return error
  lines = str(error).splitlines() or [""]
  reason = (
    f"{directory / str(step)} cannot be read,"
    f" {type(error).__name__}: {lines[0][:300]}"
  )
  if locations.is_url(str(directory)):
    reason += ". If the storage did not answer, start the same command again"
  return _damaged(directory, step, reason)


def describe(directory: str | epath.Path, step: int) -> Description:
  """Reads the description that is saved with a checkpoint's arrays.

  Other checkpoints in the folder may be damaged. One process of several may
  call it alone.

  Args:
    directory: The folder of all checkpoints.
    step: Which one.

  Raises:
    DamagedError: if it cannot be read.
  """
  directory = epath.Path(directory)
  path = directory / str(step) / DESCRIPTION
  if reason := problem(directory, step, f"{DESCRIPTION}/"):
    raise _damaged(directory, step, reason)
  try:
    values = ocp.JsonCheckpointHandler().restore(path)
  except Exception as error:
    raise _reading(directory, step, error) from error
  try:
    return Description.from_json(values)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


def read_config(
  directory: str, from_step: int | None = None
) -> tuple[int, Mapping[str, Any]]:
  """The step and the run's config of the last checkpoint in a folder.

  Args:
    directory: The folder.
    from_step: The checkpoint that was named to go on from, if one was: where
      the last one is damaged its config counts.

  Raises:
    DamagedError: if the checkpoint is damaged.
    ValueError: if there is none.
  """
  found = steps(directory)
  if not found:
    raise ValueError(
      f"{directory} has no whole checkpoint: a save was killed there. Remove"
      " the folder, or give another --workdir."
    )
  try:
    return found[-1], describe(directory, found[-1]).config
  except DamagedError:
    if from_step not in found[:-1]:
      raise
    return from_step, describe(directory, from_step).config


def set_aside(directory: str, after: int) -> None:
  """Moves the damaged ones of the checkpoints after a step out of the folder.

  Orbax cannot open a folder that has some of them.
  """
  for step in steps(directory):
    if step > after and (reason := problem(directory, step)):
      source = epath.Path(directory) / str(step)
      target = epath.Path(f"{directory}-damaged") / str(step)
      print(f"The checkpoint of step {step} is damaged: {reason}.")
      target.parent.mkdir(exist_ok=True)
      if target.is_dir():
        target.rmtree()
      else:
        target.unlink(missing_ok=True)
      source.rename(target)
      print(f"It was moved to {target}.")


def _write_list(folder: pathlib.Path) -> None:
  """Lists the size and the SHA-256 of each file of a checkpoint's parts."""
  files = {
    str(path.relative_to(folder)): (path.stat().st_size, digests.of_file(path))
    for path in sorted(folder.glob("*/**/*"))
    if path.is_file()
  }
  writing.write_aside(str(folder / FILES), json.dumps(files) + "\n")


def abstract(state: Any, shardings: Any) -> Any:
  """`jax.ShapeDtypeStruct`s with shardings, for `Checkpoints.restore`."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    state,
    shardings,
  )
