"""From a config to the parts of a run."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from mlir_jax import checkpoint, workdir
from mlir_jax import contract as contract_lib
from mlir_jax.data import preparation, reader, tokens
from mlir_jax.evals import ranking, suite
from mlir_jax.mesh import sharding
from mlir_jax.models import encoder, pretrained
from mlir_jax.retrieval import encoding
from mlir_jax.training import optim, provenance, step


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
  )


def batch_sizes(config: ml_collections.ConfigDict) -> dict[str, int]:
  """Stream to the rows of its global batch; 0 leaves it out."""
  return {name: config.batch[name] for name in tokens.STREAMS}


def check_settings(config: ml_collections.ConfigDict) -> None:
  """Refuses what cannot be honoured, before anything is read.

  Raises:
    ValueError: naming the field.
  """
  step.check_losses(loss_settings(config.loss), batch_sizes(config))
  at_least = {
    "batch.hard_negatives": 0,
    "data.prefetch": 1,
    "eval.batch_size": 1,
    "eval.every": 0,
    "eval.top_k": ranking.DEPTH,
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
  if config.data.reader not in reader.READERS:
    raise ValueError(
      f"data.reader is {config.data.reader!r}; use one of {reader.READERS}."
    )
  if not config.encoding.normalize:
    raise ValueError(
      "encoding.normalize is False, but the losses are written for cosines."
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


def initial_encoder(
  config: ml_collections.ConfigDict, prepared: preparation.Prepared
) -> tuple[encoder.EncoderConfig, Any]:
  """The encoder before training, pretrained or from scratch.

  Args:
    config: The run's config.
    prepared: Its tokenizer says how large the vocabulary is.

  Returns:
    The encoder's config and the towers' parameters, float32.

  Raises:
    ValueError: if the pretrained model and the tokenizer do not fit.
  """
  model = config.model
  # The largest id may lie beyond the number of pieces.
  vocab_size = 1 + max(prepared.tokenizer.get_vocab().values())
  if not model.pretrained:
    encoder_config = encoder.EncoderConfig(
      vocab_size=vocab_size,
      hidden_size=model.hidden_size,
      num_layers=model.num_layers,
      num_heads=model.num_heads,
      intermediate_size=model.intermediate_size,
      max_positions=model.max_positions,
      hidden_dropout=model.dropout,
      attention_dropout=model.dropout,
      pad_token_id=prepared.pad_id,
      dtype=model.dtype,
    )
    return encoder_config, encoder.init_params(
      encoder_config, model.towers, jax.random.key(config.seed)
    )
  encoder_config, params = pretrained.load(
    model.pretrained, model.revision, model.dtype
  )
  if vocab_size > encoder_config.vocab_size:
    raise ValueError(
      f"The tokenizer has ids up to {vocab_size - 1}, but {model.pretrained}"
      f" embeds {encoder_config.vocab_size}: leave tokenizer.path empty for its"
      " own."
    )
  encoder_config = dataclasses.replace(
    encoder_config,
    hidden_dropout=model.dropout,
    attention_dropout=model.dropout,
  )
  return encoder_config, encoder.with_towers(params, model.towers)


def check_same_data(ours: str, theirs: str, where: str) -> None:
  """Refuses to go on with other data than a checkpoint was trained on.

  Args:
    ours: The token store's fingerprint.
    theirs: That in the checkpoint's provenance.
    where: The checkpoint, for the message.

  Raises:
    ValueError: if they differ.
  """
  if ours != theirs:
    raise ValueError(
      f"The token store ({ours[:12]}) is not the one that {where} was"
      f" trained on ({theirs[:12]}): restore the folder, or start in another"
      " --workdir."
    )


def start_state(
  config: ml_collections.ConfigDict,
  prepared: preparation.Prepared,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
  checkpoints: checkpoint.Checkpoints,
) -> tuple[encoder.EncoderConfig, step.TrainState, Any]:
  """The state to go on from: the last checkpoint's, or a new one.

  Args:
    config: The run's config.
    prepared: Its contract and data.
    optimizer: Its optimizer.
    mesh: Where the state shall live.
    checkpoints: The run's.

  Returns:
    The encoder's config, the state, and the state's shardings.

  Raises:
    ContractMismatchError: if the checkpoint's contract is another.
    ValueError: if the checkpoint is of other data, or the model and the
      tokenizer, or the model and the lengths, do not fit.
  """
  last = checkpoints.last_step()
  if last is None:
    encoder_config, params = initial_encoder(config, prepared)
  else:
    where = f"step {last} in {checkpoints.directory}"
    found = checkpoints.describe(last)
    contract_lib.check_same(prepared.contract, found.contract, where)
    check_same_data(
      prepared.store.fingerprint, found.provenance["token_store"], where
    )
    encoder_config = encoder.EncoderConfig(**found.encoder)
    params = encoder.abstract_params(encoder_config, config.model.towers)
  encoder.check_lengths(
    encoder_config,
    {name: config.encoding[name].max_length for name in contract_lib.ROLES},
  )

  def init(params):
    return step.init_state(params, optimizer)

  abstract = jax.eval_shape(init, params)
  shardings = sharding.state_shardings(abstract, mesh, config.mesh.fsdp)
  print(sharding.describe(abstract.params, shardings.params))
  if last is None:
    state = jax.jit(init, out_shardings=shardings)(params)
  else:
    state = checkpoints.restore(last, checkpoint.abstract(abstract, shardings))
    print(f"Going on from {where}.")
  return encoder_config, state, shardings


def jit_step(
  config: ml_collections.ConfigDict,
  embed: step.Embed,
  schedule: optax.Schedule,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
  shardings: Any,
) -> Callable:
  """The train step, jitted for the mesh; it donates the state."""
  train_step = step.make_train_step(
    embed,
    loss_settings(config.loss),
    optimizer,
    schedule,
    config.seed,
    sharding.replicate(mesh),
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
    streams=[name for name, size in batch_sizes(config).items() if size],
  )


def describe(
  config: ml_collections.ConfigDict,
  prepared: preparation.Prepared,
  encoder_config: encoder.EncoderConfig,
) -> checkpoint.Description:
  """What stands beside the arrays in the run's checkpoints."""
  values = config.to_dict()
  for name in ("root", "tatoeba_root"):
    if values["data"][name]:  # Found from any directory.
      values["data"][name] = workdir.absolute(values["data"][name])
  return checkpoint.Description(
    config=values,
    contract=prepared.contract,
    encoder=dataclasses.asdict(encoder_config),
    provenance=provenance.describe(prepared.store.fingerprint),
  )
