"""From a config to the parts of a run."""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
from etils import epath

from mlir_jax import checkpoint, workdir
from mlir_jax.data import preparation, reader
from mlir_jax.evals import ranking, suite
from mlir_jax.mesh import sharding
from mlir_jax.models import config as config_lib
from mlir_jax.models import encoder, masked_lm
from mlir_jax.retrieval import encoding
from mlir_jax.training import losses, optim, provenance, step

# Token scores that a device holds at once in masked language modelling: 256
# MB in float32, a few times over.
_SCORES = 2**26


def loss_settings(loss: ml_collections.ConfigDict) -> step.LossSettings:
  """The `loss` part of the config as plain settings."""
  return step.LossSettings(
    ir_weight=loss.ir.weight,
    ir_temperature=loss.ir.temperature,
    ir_symmetric=loss.ir.symmetric,
    semantic_weight=loss.semantic.weight,
    semantic_temperature=loss.semantic.temperature,
    language_weight=loss.language.weight,
    language_temperature=loss.language.temperature,
    third_points={kind: loss.language[kind] for kind in step.THIRD_POINTS},
    language_stop_gradient=loss.language.stop_gradient,
    masked_lm_weight=loss.masked_lm.weight,
  )


def batch_sizes(config: ml_collections.ConfigDict) -> dict[str, int]:
  """Stream to the rows of its global batch; 0 leaves it out."""
  return {name: config.batch[name] for name in reader.STREAMS}


def check_settings(config: ml_collections.ConfigDict) -> None:
  """Refuses what cannot be honoured, before anything is read.

  Raises:
    ValueError: naming the field.
  """
  step.check_losses(loss_settings(config.loss), batch_sizes(config))
  at_least = {
    **{f"batch.{stream}": 0 for stream in reader.STREAMS},
    "batch.hard_negatives": 0,
    "data.prefetch": 1,
    "eval.batch_size": 1,
    "eval.every": 0,
    "eval.top_k": ranking.DEPTH,
    "model.projection_size": 0,
    "train.checkpoint_every": 1,
    "train.keep": 1,
    "train.log_every": 1,
    "train.max_nonfinite_steps": 1,
    "train.steps": 1,
  }
  values = workdir.flatten(config.to_dict())
  for name, least in at_least.items():
    if values[name] < least:
      raise ValueError(f"{name} is {values[name]}; at least {least}.")
  if config.data.language_temperature <= 0:
    raise ValueError(
      f"data.language_temperature is {config.data.language_temperature}; it"
      " must be above 0."
    )
  if config.model.towers not in encoder.TOWERS:
    raise ValueError(
      f"model.towers is {config.model.towers!r}; use one of {encoder.TOWERS}."
    )
  if not 0 <= config.model.dropout < 1:
    raise ValueError(
      f"model.dropout is {config.model.dropout}; it must be in [0, 1)."
    )
  trained = [n for n in step.STREAM_OF_LOSS if config.loss[n].weight]
  if trained == ["masked_lm"] and config.model.towers != "tied":
    raise ValueError(
      "loss.masked_lm alone trains the passage tower and leaves the other as it"
      " is: set model.towers='tied'."
    )
  if config.data.reader not in reader.READERS:
    raise ValueError(
      f"data.reader is {config.data.reader!r}; use one of {reader.READERS}."
    )
  if jax.process_count() > 1:
    raise ValueError(
      "Training runs on one host for now: start one process, of any number of"
      " devices."
    )


def host_rows(
  config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh
) -> dict[str, np.ndarray]:
  """Stream to the rows of its global batch that this host reads.

  Raises:
    ValueError: if a batch does not divide over the mesh.
  """
  return {
    name: sharding.host_rows(mesh, size, f"batch.{name}")
    for name, size in batch_sizes(config).items()
    if size
  }


def make_optimizer(
  config: ml_collections.ConfigDict,
) -> tuple[optax.Schedule, optax.GradientTransformation]:
  """The learning-rate schedule and the optimizer that a config asks for."""
  settings = config.optim
  schedule = optim.make_schedule(
    settings.learning_rate,
    warmup_steps=settings.warmup_steps,
    decay=settings.decay,
    final_fraction=settings.final_fraction,
    steps=config.train.steps,
  )
  return schedule, optim.make_optimizer(
    schedule,
    b1=settings.b1,
    b2=settings.b2,
    eps=settings.eps,
    weight_decay=settings.weight_decay,
    clip_norm=settings.clip_norm,
  )


def _parts(rows: int, scores: int) -> int:
  """The fewest equal parts of some rows that hold `_SCORES` scores at most."""
  parts = [n for n in range(1, rows + 1) if rows % n == 0]
  return next((n for n in parts if scores <= n * _SCORES), rows)


def make_masked_lm(
  encoder_config: config_lib.EncoderConfig, devices: int = 1
) -> step.MaskedLM:
  """Masked language modelling in the passage tower, which reads sentences.

  Args:
    encoder_config: The encoder's.
    devices: Over how many the masked texts are split.
  """

  def read(params, batch, dropout_key):
    tower = encoder.tower_params(params, "passage")
    states = encoder.masked_states(
      encoder_config,
      params,
      "passage",
      batch["tokens"],
      batch["positions"],
      dropout_key,
    )
    return {
      "states": states,
      "head": params[encoder.MASKED_LM],
      "table": tower["embeddings"]["token"],
    }

  def loss(outputs, targets, valid):
    score = functools.partial(
      masked_lm.logits, encoder_config, outputs["head"], outputs["table"]
    )
    texts, places = targets.shape
    rows = texts // devices
    chunks = _parts(rows, rows * places * encoder_config.padded_vocab_size)
    return losses.masked_lm_loss(
      score, outputs["states"], targets, valid, chunks=chunks
    )

  return step.MaskedLM(read, loss)


def jit_step(
  config: ml_collections.ConfigDict,
  embed: step.Embed,
  schedule: optax.Schedule,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
  shardings: Any,
  encoder_config: config_lib.EncoderConfig,
) -> Callable:
  """The train step, jitted for the mesh; it donates the state."""
  train_step = step.make_train_step(
    embed,
    loss_settings(config.loss),
    optimizer,
    schedule,
    config.seed,
    sharding.replicate(mesh),
    make_masked_lm(encoder_config, mesh.shape[sharding.DATA]),
  )
  return jax.jit(
    train_step,
    donate_argnums=0,
    out_shardings=(shardings, sharding.replicated(mesh)),
  )


def make_suite(
  config: ml_collections.ConfigDict,
  prepared: preparation.Prepared,
  embed: step.Embed,
  mesh: jax.sharding.Mesh,
  folder: str,
) -> suite.Suite:
  """The run's evaluations."""
  text_encoder = encoding.TextEncoder(
    prepared.contract,
    prepared.tokenizer,
    prepared.pad_id,
    embed,
    mesh,
    config.eval.batch_size,
  )
  return suite.Suite(
    prepared.tests,
    prepared.translation_tests,
    prepared.collection.groups,
    text_encoder,
    f"{folder}/{workdir.RESULTS}",
    top_k=config.eval.top_k,
    trained_on=prepared.collection,
    streams=reader.streams_read(config.batch),
  )


def describe(
  config: ml_collections.ConfigDict,
  prepared: preparation.Prepared,
  encoder_config: config_lib.EncoderConfig,
  folder: str,
) -> checkpoint.Description:
  """What stands beside the arrays in the run's checkpoints."""
  values = config.to_dict()
  backbone = epath.Path(folder) / workdir.BACKBONE
  for name in ("root", "tatoeba_root"):
    if values["data"][name]:  # Found from any directory.
      values["data"][name] = workdir.absolute(values["data"][name])
  return checkpoint.Description(
    config=values,
    contract=prepared.contract,
    encoder=dataclasses.asdict(encoder_config),
    provenance=provenance.describe(
      prepared.store.fingerprint,
      json.loads(backbone.read_text()) if backbone.exists() else None,
    ),
  )
