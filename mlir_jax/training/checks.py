"""Refuses a config that cannot be trained, before anything is read."""

import dataclasses
import os
from collections.abc import Mapping

import jax
import ml_collections

from mlir_jax import config as run_config
from mlir_jax import contract as contract_lib
from mlir_jax import sharding
from mlir_jax.batches import shapes
from mlir_jax.data import preparation
from mlir_jax.hub import warm_start
from mlir_jax.losses import base, registry
from mlir_jax.training import build, initial_state


def check_settings(config: ml_collections.ConfigDict) -> None:
  """Refuses a config that cannot be trained, before anything is read.

  Raises:
    ValueError: naming the field.
  """
  run_config.check(config)
  build.find_evaluators(config)
  losses = registry.make(config.loss)
  registry.check(losses, dataclasses.asdict(build.batch_spec(config)))
  _check_shape(config, losses)
  _check_sources(config)
  _check_attention(config)
  if config.model.towers != "tied" and not any(
    loss.weight and "queries" in loss.reads for loss in losses.values()
  ):
    raise ValueError(
      "Without the IR loss (loss.ir.weight) nothing trains the query tower: set"
      " model.towers='tied'."
    )
  if config.optim.warmup_steps > config.train.steps:
    raise ValueError(
      f"optim.warmup_steps is {config.optim.warmup_steps}, but train.steps is"
      f" {config.train.steps}: the learning rate would never reach its peak."
    )
  decay = config.optim.learning_rate * config.optim.weight_decay
  if decay >= 1:
    raise ValueError(
      f"optim.learning_rate x optim.weight_decay is {decay}: the decay of one"
      " step would change the sign of a weight; their product must be below 1."
    )


def _check_shape(
  config: ml_collections.ConfigDict, losses: Mapping[str, base.Loss]
) -> None:
  """Refuses a shape that a model from scratch, or its vectors, cannot have."""
  model = config.model
  if config.encoding.normalize is False and registry.need_unit_vectors(losses):
    raise ValueError(
      "encoding.normalize is False, but the contrastive losses compare vectors"
      " of unit length: set it to True."
    )
  for role in contract_lib.ROLES:
    prefix = config.encoding[role].prefix
    if prefix and not prefix.strip():
      raise ValueError(
        f"encoding.{role}.prefix is {prefix!r}: white space alone adds nothing;"
        " give a word or an empty text."
      )
  if model.pretrained:
    return
  if model.hidden_size % model.num_heads:
    raise ValueError(
      f"model.hidden_size is {model.hidden_size}, which model.num_heads,"
      f" {model.num_heads}, does not divide."
    )
  # From scratch, no model's folder says how texts are encoded.
  contract = preparation.resolve_encoding(config, None).complete(None)
  for role in contract_lib.ROLES:
    length = contract.role(role).max_length
    if length > model.max_positions:
      raise ValueError(
        f"encoding.{role}.max_length is {length}, but model.max_positions is"
        f" {model.max_positions}: lower the length or raise the positions."
      )


def _check_sources(config: ml_collections.ConfigDict) -> None:
  """Refuses what says where something is, but is not read."""
  data, model = config.data, config.model
  for name in ("root", "tatoeba_root"):
    if data.collection == "cldr" and data[name]:
      raise ValueError(
        f"data.{name} is {data[name]!r}, but data.collection is 'cldr', which"
        " reads no files: set data.collection=folder."
      )
  if model.revision and (
    not model.pretrained
    or (
      os.path.isdir(model.pretrained)
      and not warm_start.is_run(model.pretrained)
    )
  ):
    raise ValueError(
      f"model.revision is {model.revision!r}, but model.pretrained is"
      f" {model.pretrained!r}: only a name on the hub and a run have revisions."
    )


def _check_attention(config: ml_collections.ConfigDict) -> None:
  """Refuses fused attention where it does not work."""
  model = config.model
  if model.attention != "cudnn":
    return
  missing = []
  if jax.default_backend() != "gpu":
    missing.append("a GPU")
  if model.dtype != "bfloat16":
    missing.append("model.dtype=bfloat16")
  if initial_state.dropout_rates(config)["attention_dropout"]:
    missing.append("model.attention_dropout=0.0")
  for role in contract_lib.ROLES:
    if (config.encoding[role].max_length or 0) % 2:
      missing.append(f"an even encoding.{role}.max_length")
  if missing:
    raise ValueError(
      f"model.attention='cudnn' needs {' and '.join(missing)}; or use 'xla'."
    )


def check_mesh(
  config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh
) -> None:
  """Raises ValueError if a batch or chunk does not divide over the mesh."""
  for name, size in build.batch_sizes(config).items():
    sharding.check_divides(mesh, size, f"batch.{name}")
  shapes.check_chunk(
    config.batch.chunk,
    build.batch_spec(config).texts(),
    mesh.shape[sharding.DATA],
  )
