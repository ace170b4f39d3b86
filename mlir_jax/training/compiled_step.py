"""The step, compiled ahead for each shape of batch, and what it costs."""

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

# Where this process keeps compiled programs, if not where it was told to.
_kept: str | None = None


def abstract_batch(
  spec: batch_lib.BatchSpec,
  plan: row_plans.Plan,
  mesh: jax.sharding.Mesh,
  *,
  positives: int = 1,
) -> batch_lib.Batch:
  """A global batch of shapes and dtypes alone, to compile for.

  Args:
    spec: Global batch sizes.
    plan: The rows.
    mesh: The mesh that the batch is placed on.
    positives: P, the most known positives of a question.

  Returns:
    The batch, of `jax.ShapeDtypeStruct`s with shardings.
  """
  create = functools.partial(
    jax.ShapeDtypeStruct, sharding=sharding.over_data(mesh)
  )
  return batch_lib.make(spec, plan, create, positives=positives)


def keep_compiled(cache: str, folder: str) -> None:
  """Keeps compiled programs for the next start, unless JAX was told where.

  Args:
    cache: Where, in the run's folder unless it is absolute or a URL; "" for
      nowhere.
    folder: The run's folder.

  Raises:
    ValueError: if it is not a folder, and cannot become one.
  """
  global _kept
  kept = str(epath.Path(folder) / cache) if cache else None
  # Without the run's folder, that it cannot be made is told later.
  if kept and (os.path.isabs(cache) or os.path.isdir(folder)):
    locations.check_folder(kept, f"train.compilation_cache={cache}")
  if jax.default_backend() == "cpu" and jax.process_count() > 1:
    # Process 0 alone finds what was kept, and would wait for the others where
    # nobody waits for long.
    jax.config.update("jax_enable_compilation_cache", False)
  elif jax.config.values["jax_compilation_cache_dir"] == _kept:
    _kept = kept
    jax.config.update("jax_compilation_cache_dir", _kept)


def _key(batch: PyTree) -> tuple:
  return tuple(leaf.shape for leaf in jax.tree.leaves(batch))


class CompiledStep:
  """A train step that is compiled for the shapes it may meet.

  What does not fit in memory fails before the first step. Only the shape of the
  last resort is compiled when it comes, which is seldom or never.
  """

  def __init__(
    self,
    train_step: Callable,
    state: step.TrainState,
    batches: Sequence[PyTree],
    ahead: int,
    say: Callable[[str], None] = print,
  ):
    """Compiles for the shapes that are expected.

    Args:
      train_step: Jitted: (state, batch) -> (state, metrics).
      state: Arrays or `jax.ShapeDtypeStruct`s with shardings.
      batches: The shapes that may come, each like `abstract_batch`.
      ahead: How many of them are expected.
      say: Where what it costs is told.

    Raises:
      MemoryError: if one does not fit.
    """
    self._train_step = train_step
    self._say = say
    self._compiled = {}
    for batch in batches[:ahead]:
      self._compile(state, batch)

  def __call__(self, state: step.TrainState, batch: PyTree) -> tuple:
    """Takes the step."""
    key = _key(batch)
    if key not in self._compiled:
      multihost.report("compiling")
      self._say("A step of more tokens than were foreseen: compiling for it.")
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
        " a smaller one; model.remat=layer; mesh.fsdp=True; or a smaller batch."
        f" The compiler says: {error}"
      ) from error
    self._say(
      f"Compiled the step in {time.perf_counter() - started:.1f} s:"
      f" {describe_memory(program)} per device."
    )
    # A process that is not there yet would be awaited in the first collective,
    # and not for long.
    multihost.check_in(f"compiled {len(self._compiled) + 1}", {})
    self._compiled[_key(batch)] = program


def step_flops(
  config: ml_collections.ConfigDict,
  encoder_config: architecture.EncoderConfig,
  plans: row_plans.Plans,
) -> flops.Flops:
  """The operations of a step with a config, over all devices.

  Args:
    config: The run's.
    encoder_config: The encoder's.
    plans: The rows that its texts are in.
  """
  counts = plans.counts
  usual = plans.plans[0]
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
      matrix
      for loss in registry.make(config.loss).values()
      for matrix in loss.score_matrices(config.batch)
    ],
    places=sum(block.rows * block.targets for block in usual.get("masked", ())),
    forwards_again=(config.batch.chunk_rows > 0)
    + (encoder_config.remat == "layer"),
    attends_again=int(encoder_config.remat == "dots"),
  )


def describe_memory(program: jax.stages.Compiled) -> str:
  """What a compiled step takes of a device's memory."""
  found = memory.of_program(program)
  return (
    f"{found['arguments'] / 2**20:,.0f} MiB of arguments and"
    f" {found['temporaries'] / 2**20:,.0f} MiB of temporaries"
  )
