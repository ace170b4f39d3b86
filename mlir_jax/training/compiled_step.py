"""The step, compiled ahead for each shape of batch, and what it costs."""

import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, SupportsInt

import jax
import ml_collections
from etils import epath

from mlir_jax import sharding
from mlir_jax.batches import batch as batch_lib
from mlir_jax.batches import masking, shapes
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
  plan: shapes.Plan,
  mesh: jax.sharding.Mesh,
  *,
  positives: int = 1,
  max_targets: Callable[[int], SupportsInt] | None = None,
) -> batch_lib.Batch:
  """A global batch of shapes and dtypes alone, to compile for.

  Args:
    spec: Global batch sizes.
    plan: The buckets.
    mesh: The mesh that the batch is placed on.
    positives: P, the most known positives of a question.
    max_targets: Length of a masked text to the most targets in it.

  Returns:
    The batch, of `jax.ShapeDtypeStruct`s with shardings.
  """
  create = functools.partial(
    jax.ShapeDtypeStruct, sharding=sharding.over_data(mesh)
  )
  return batch_lib.make(
    spec, plan, create, positives=positives, max_targets=max_targets
  )


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

  What does not fit in an accelerator's memory fails before the first step. A
  CPU's shapes beyond the usual one are compiled when they come, which is
  seldom.
  """

  def __init__(
    self,
    train_step: Callable,
    state: step.TrainState,
    batches: Sequence[PyTree],
    say: Callable[[str], None] = print,
  ):
    """Compiles for the usual shape, and on accelerators for all.

    Args:
      train_step: Jitted: (state, batch) -> (state, metrics).
      state: Arrays or `jax.ShapeDtypeStruct`s with shardings.
      batches: The shapes that may come, the usual one first, each like
        `abstract_batch`.
      say: Where what it costs is told.

    Raises:
      MemoryError: if one does not fit.
    """
    self._train_step = train_step
    self._say = say
    self._compiled = {}
    ahead = 1 if jax.default_backend() == "cpu" else len(batches)
    for batch in batches[:ahead]:
      self._compile(state, batch)

  def __call__(self, state: step.TrainState, batch: PyTree) -> tuple:
    """Takes the step."""
    key = _key(batch)
    if key not in self._compiled:
      multihost.report("compiling")
      self._say("A batch of longer texts than usual: compiling for it.")
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
        "The step does not fit in the devices' memory. Set batch.chunk, or a"
        " smaller one; model.remat=layer; mesh.fsdp=True; or a smaller batch."
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
  plan: shapes.Plan,
) -> flops.Flops:
  """The operations of a step with a config, over all devices.

  Args:
    config: The run's.
    encoder_config: The encoder's.
    plan: The buckets that its texts stand in.
  """
  rate = config.data.masking.rate
  return flops.train_step(
    encoder_config,
    [(rows, length) for chosen in plan.values() for rows, length in chosen],
    [
      matrix
      for loss in registry.make(config.loss).values()
      for matrix in loss.score_matrices(config.batch)
    ],
    places=sum(
      bucket.rows * int(masking.max_targets(rate, bucket.length))
      for bucket in plan.get("masked", ())
    ),
    forwards_again=(config.batch.chunk > 0) + (encoder_config.remat == "layer"),
    attends_again=int(encoder_config.remat == "dots"),
  )


def describe_memory(program: jax.stages.Compiled) -> str:
  """What a compiled step takes of a device's memory."""
  found = memory.of_program(program)
  return (
    f"{found['arguments'] / 2**20:,.0f} MiB of arguments and"
    f" {found['temporaries'] / 2**20:,.0f} MiB of temporaries"
  )
