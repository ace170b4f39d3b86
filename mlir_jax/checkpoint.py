"""Checkpoints: the only file that imports orbax.

A checkpoint holds the training state and a description: config, encoding
contract, encoder shape and provenance, all that is needed to encode with it.
Saves run in the background; orbax writes aside and renames, so that a killed
save leaves the checkpoint before it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from mlir_jax import contract as contract_lib
from mlir_jax import stored

STATE = "state"
DESCRIPTION = "description"
METRIC = "dev"


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
    return {**values, "fingerprint": stored.digest_of(values)}

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> "Description":
    """Reads what `to_json` made.

    Raises:
      ValueError: if it has changed since, or lacks something.
    """
    values = dict(values)
    # Descriptions of before have no hash.
    written = values.pop("fingerprint", None)
    if written is not None and written != stored.digest_of(values):
      raise ValueError(
        "it has changed since it was saved, so its vectors would be others."
        f" {stored.RESTORE}"
      )
    names = {field.name for field in dataclasses.fields(cls)}
    if values.keys() != names or not isinstance(values["contract"], str):
      raise ValueError(
        f"it holds {sorted(values)}, not {sorted(names)}. {stored.RESTORE}"
      )
    contract = contract_lib.EncodingContract.from_json(values["contract"])
    return cls(**{**values, "contract": contract})


class Checkpoints:
  """The checkpoints of one run: the last few, and the best by English dev."""

  def __init__(self, directory: str, keep: int = 2, *, read_only: bool = False):
    """Opens the folder, removing what a killed save left behind.

    Args:
      directory: The folder, an absolute path; made if missing.
      keep: How many of the last checkpoints stay, beside the best one.
      read_only: Leaves everything as it is: a run may be saving there.
    """
    self.directory = epath.Path(directory)
    self._manager = ocp.CheckpointManager(
      self.directory,
      options=ocp.CheckpointManagerOptions(
        best_fn=lambda metrics: metrics[METRIC],
        best_mode="max",
        read_only=read_only,
        cleanup_tmp_directories=not read_only,
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
      ),
      item_names=(STATE, DESCRIPTION),
    )

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
    """
    if jax.default_backend() == "cpu":
      # Orbax reads the CPU device's own memory in the background, which the
      # next step's donation would overwrite; of other devices it has a copy.
      state = jax.tree.map(lambda leaf: leaf.copy(), state)
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

  def find(self, which: str | int) -> int:
    """The step of "last", of "best" by English dev, or of a number given.

    Raises:
      ValueError: if there is no such checkpoint; it lists those there are.
    """
    steps = sorted(self._manager.all_steps())
    if which == "last" and steps:
      return steps[-1]
    if which == "best":
      evaluated = {
        step: metrics[METRIC]
        for step in steps
        if (metrics := self._manager.metrics(step))
      }
      if evaluated:
        return max(evaluated, key=evaluated.get)
      raise ValueError(
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

  def describe(self, step: int) -> Description:
    """Reads what stands beside the arrays."""
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(**{DESCRIPTION: ocp.args.JsonRestore()}),
    )
    try:
      return Description.from_json(restored[DESCRIPTION])
    except ValueError as error:
      where = self.directory / str(step) / DESCRIPTION
      raise ValueError(f"{where}: {error}") from error

  def restore(self, step: int, target: Any) -> Any:
    """Reads the state onto any mesh.

    Args:
      step: From `find`.
      target: `jax.ShapeDtypeStruct`s with shardings, a tree like the state.

    Returns:
      The state, bit for bit as it was saved.
    """
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(**{STATE: ocp.args.StandardRestore(target)}),
    )
    return restored[STATE]

  def restore_params(self, step: int, target: Any) -> Any:
    """Reads the parameters alone, as `restore` does the state."""
    with ocp.PyTreeCheckpointer() as reader:
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
    return restored["params"]

  def wait(self) -> None:
    """Waits until what was saved is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits and lets go of the folder."""
    self._manager.close()


def abstract(state: Any, shardings: Any) -> Any:
  """`jax.ShapeDtypeStruct`s with shardings, for `Checkpoints.restore`."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    state,
    shardings,
  )
