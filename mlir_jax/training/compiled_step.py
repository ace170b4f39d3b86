"""Compiles the step for each shape of batch, before training starts."""

import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
from etils import epath

from mlir_jax import sharding
from mlir_jax.batches import batch as batch_lib
from mlir_jax.batches import row_plans
from mlir_jax.costs import flops, memory
from mlir_jax.hosts import multihost
from mlir_jax.losses import registry
from mlir_jax.models import architecture
from mlir_jax.storage import locations
from mlir_jax.training import step

PyTree = Any

# The folder of compiled programs that this module last gave to JAX.
_kept: str | None = None


def abstract_batch(
  spec: batch_lib.BatchSpec,
  plan: row_plans.Plan,
  mesh: jax.sharding.Mesh,
  *,
  positives: int = 1,
  widths: batch_lib.Widths = batch_lib.NO_WIDTHS,
) -> batch_lib.Batch:
  """Returns a global batch without values, for compilation.

  Args:
    spec: Global batch sizes.
    plan: The rows.
    mesh: The mesh that the batch is placed on.
    positives: P, from `BatchSpec.positives`.
    widths: As in `batch.make`.

  Returns:
    The batch, of `jax.ShapeDtypeStruct`s with shardings.
  """
  create = functools.partial(
    jax.ShapeDtypeStruct, sharding=sharding.over_data(mesh)
  )
  return batch_lib.make(spec, plan, create, positives=positives, widths=widths)


def keep_compiled(cache: str, folder: str) -> None:
  """Stores compiled programs for the next start.

  A folder that the user has set in JAX stays in use.

  Args:
    cache: The folder of the programs: a URL, an absolute path, or a path in the
      run's folder. "" stores no programs.
    folder: The run's folder.

  Raises:
    ValueError: if `cache` is not a folder and cannot be made.
  """
  global _kept
  kept = str(epath.Path(folder) / cache) if cache else None
  # If the run's folder is missing, a later check reports problems with it.
  if kept and (os.path.isabs(cache) or os.path.isdir(folder)):
    locations.check_folder(kept, f"train.compilation_cache={cache}")
  if jax.default_backend() == "cpu" and jax.process_count() > 1:
    # Only process 0 finds stored programs. It would wait for the others in a
    # place with a short time limit.
    jax.config.update("jax_enable_compilation_cache", False)
  elif jax.config.values["jax_compilation_cache_dir"] == _kept:
    _kept = kept
    jax.config.update("jax_compilation_cache_dir", _kept)


def _key(batch: PyTree) -> tuple:
  """Returns the structure and the shapes of a batch."""
  leaves, structure = jax.tree.flatten(batch)
  return structure, tuple(leaf.shape for leaf in leaves)


class CompiledStep:
  """A train step that is compiled for the shapes of a run's batches.

  If a step does not fit in memory, this fails before the first step. Only the
  last resort is compiled when a batch needs it, which happens rarely or never.
  """

  def __init__(
    self,
    train_step: Callable,
    state: step.TrainState,
    batches: Sequence[PyTree],
    ahead: int,
    say: Callable[[str], None] = print,
  ):
    """Compiles for the expected shapes.

    Args:
      train_step: Jitted: (state, batch) -> (state, metrics).
      state: Arrays or `jax.ShapeDtypeStruct`s with shardings.
      batches: All possible shapes, each like `abstract_batch`.
      ahead: The number of shapes, from the first, that are expected.
      say: Prints the time and the memory.

    Raises:
      MemoryError: if a step does not fit in memory.
    """
    self._train_step = train_step
    self._say = say
    self._compiled = {}
    # The largest first: if memory is too small, this fails at once.
    for batch in reversed(batches[:ahead]):
      self._compile(state, batch)

  def __call__(self, state: step.TrainState, batch: PyTree) -> tuple:
    """Takes the step."""
    key = _key(batch)
    if key not in self._compiled:
      multihost.report("compiling")
      self._say("This step has more tokens than expected: compiling for it.")
      with jax.transfer_guard("allow"):
        self._compile(state, batch)
    return self._compiled[key](state, batch)

  def _compile(self, state, batch) -> None:
    multihost.report("compiling")
    started = time.perf_counter()
    lowered = self._train_step.lower(state, batch)
    try:
      program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      raise MemoryError(
        "The step does not fit in the devices' memory. Set batch.chunk_rows, or"
        " reduce it; set model.remat=layer or mesh.fsdp=True; or use a smaller"
        " batch."
        f" The compiler says: {error}"
      ) from error
    self._say(
      f"Compiled the step in {time.perf_counter() - started:.1f} s:"
      f" {describe_memory(program)} per device."
    )
    # Wait here for slower processes: the first collective has a short time
    # limit.
    multihost.check_in(f"compiled {len(self._compiled) + 1}", {})
    self._compiled[_key(batch)] = program


def step_flops(
  config: ml_collections.ConfigDict,
  encoder_config: architecture.EncoderConfig,
  plans: row_plans.Plans,
  widths: batch_lib.Widths = batch_lib.NO_WIDTHS,
  truncate_dim: int = 0,
) -> flops.Flops:
  """Returns the operations of a step, over all devices.

  Args:
    config: The run's.
    encoder_config: The encoder's.
    plans: The rows of the run's batches.
    widths: As in `batch.make`.
    truncate_dim: That of the run's contract.
  """
  losses = registry.make(config.loss)
  dimensions = registry.dimensions(config.loss)
  whole = truncate_dim or encoder_config.output_size
  counts = plans.counts
  usual = plans.usual
  return flops.train_step(
    encoder_config,
    list(counts.values()),
    [
      flops.Texts(
        texts=block.rows * block.texts,
        tokens=block.rows * block.length,
        pairs=block.rows * block.length**2,
      )
      for blocks in usual.values()
      for block in blocks
    ],
    [
      (*matrix, width)
      for loss in losses.values()
      for matrix in loss.score_matrices(config.batch)
      for width in [whole, *(dimensions if loss.nested else ())]
    ],
    [
      (*matrix, widths.guide)
      for loss in losses.values()
      for matrix in loss.guide_matrices(config.batch)
    ],
    places=sum(block.rows * block.targets for block in usual.get("masked", ())),
    forwards_again=(config.batch.chunk_rows > 0)
    + (encoder_config.remat == "layer"),
    attends_again=int(encoder_config.remat == "dots"),
  )


def describe_memory(program: jax.stages.Compiled) -> str:
  """Describes the memory that a compiled step takes on each device."""
  found = memory.of_program(program)
  return (
    f"{found['arguments'] / 2**20:,.0f} MiB of arguments and"
    f" {found['temporaries'] / 2**20:,.0f} MiB of temporaries"
  )
