"""The train step of a run, lowered for chips that are not there."""

import os

import jax
import ml_collections
import numpy as np
from jax.experimental import topologies

from mlir_jax import contract as contract_lib
from mlir_jax import sharding
from mlir_jax.batches import batch as batch_lib
from mlir_jax.batches import row_plans
from mlir_jax.data import preparation, token_store
from mlir_jax.models import architecture, encoder
from mlir_jax.planner import chips
from mlir_jax.training import build, compiled_step, step


def make_mesh(
  config: ml_collections.ConfigDict, topology: str
) -> tuple[chips.Chip, tuple[int, ...], jax.sharding.Mesh]:
  """Returns the chips of a slice, the slice's shape, and its mesh.

  Args:
    config: The run's config, for the axes of the mesh.
    topology: The slice, such as "v5e:16x16".

  Raises:
    ValueError: if there is no such slice, or the config's mesh does not fit.
    ImportError: if libtpu is missing.
  """
  chip, axes = chips.parse(topology)
  try:
    import libtpu  # noqa: F401
  except ImportError as error:
    raise ImportError(
      "Compiling for TPUs needs libtpu: pip install mlir_jax[tpu]."
    ) from error
  for name, value in {
    "TPU_SKIP_MDS_QUERY": "1",  # There is no metadata server here.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # Other processes may compile, too.
    # Without these two, libtpu logs errors.
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # Products that are fused three deep overflowed its stacks of 64 kB.
    "LIBTPU_INIT_ARGS": "--fibers_default_thread_stack_size=1048576",
  }.items():
    os.environ.setdefault(name, value)
  try:
    found = topologies.get_topology_desc(
      topology, platform="tpu", **dict(chip.options)
    )
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(f"--topology={topology}: {error}") from error
  mesh = sharding.make_mesh(
    config.mesh.data, config.mesh.model, devices=found.devices
  )
  return chip, axes, mesh


def make_contract(
  config: ml_collections.ConfigDict,
) -> contract_lib.EncodingContract:
  """Returns the config's encoding contract, without a tokenizer."""
  return preparation.resolve_encoding(config, None).complete(None)


def full_plans(
  config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh
) -> row_plans.Plans:
  """Returns the rows of a batch whose texts all have the maximum length."""
  spec = build.batch_spec(config)
  contract = make_contract(config)
  lengths = {
    role: contract.role(role).max_length for role in contract_lib.ROLES
  }
  queries = [lengths["query"]] * spec.retrieval
  passages = [lengths["passage"]] * spec.retrieval * (1 + spec.hard_negatives)
  sentences = [lengths["sentence"]] * (2 * spec.parallel + spec.monolingual)
  of_group = {
    "query": queries,
    "passage": passages + sentences + (queries if spec.tied else []),
    "masked": [lengths["sentence"]] * spec.masked,
  }
  return row_plans.choose(
    {group: np.array([of_group[group]]) for group in spec.texts()},
    {group: max(of_group[group]) for group in spec.texts()},
    1,
    **build.row_settings(config, mesh),
  )


def lower(
  config: ml_collections.ConfigDict,
  shape: architecture.EncoderConfig,
  mesh: jax.sharding.Mesh,
  plan: row_plans.Plan,
  store: token_store.TokenStore | None = None,
  widths: batch_lib.Widths = batch_lib.NO_WIDTHS,
) -> jax.stages.Lowered:
  """Lowers the train step of a run with this config.

  Args:
    config: The run's config.
    shape: From `backbones.encoder_config`.
    mesh: The devices; they need not exist.
    plan: The shapes of a batch.
    store: The run's token store, if it is prepared.
    widths: From `backbones.widths`.
  """
  schedule, optimizer = build.make_optimizer(config)
  abstract = jax.eval_shape(
    lambda params: step.init_state(params, optimizer),
    encoder.abstract_params(
      shape, config.model.towers, bool(config.batch.masked)
    ),
  )
  shardings = sharding.state_shardings(abstract, mesh, config.mesh.fsdp)
  contract = store.contract if store else make_contract(config)
  train_step = build.jit_step(
    config, contract, schedule, optimizer, mesh, shardings, shape
  )
  spec = build.batch_spec(config)
  batch = compiled_step.abstract_batch(
    spec,
    plan,
    mesh,
    positives=spec.positives(store.max_positives) if store else 1,
    widths=widths,
  )
  return train_step.lower(sharding.abstract(abstract, shardings), batch)
