"""From a config to the parts of a run."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
from flax import traverse_util

from mlir_jax import checkpoint, workdir
from mlir_jax import contract as contract_lib
from mlir_jax.data import preparation, reader
from mlir_jax.evals import ranking, suite
from mlir_jax.mesh import sharding
from mlir_jax.models import config as config_lib
from mlir_jax.models import encoder, masked_lm, pretrained
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


def initial_config(
  config: ml_collections.ConfigDict, prepared: preparation.Prepared
) -> config_lib.EncoderConfig:
  """The shape of the encoder, pretrained or from scratch.

  Args:
    config: The run's config.
    prepared: Its tokenizer says how large the vocabulary is.

  Raises:
    ValueError: if the pretrained model and the config do not fit.
  """
  model = config.model
  # The largest id may lie beyond the number of pieces.
  vocab_size = 1 + max(prepared.tokenizer.get_vocab().values())
  if not model.pretrained:
    return config_lib.EncoderConfig(
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
      projection_size=model.projection_size,
    )
  found = pretrained.load_config(
    pretrained.fetch(model.pretrained, model.revision), model.dtype
  )
  if vocab_size > found.vocab_size:
    raise ValueError(
      f"The tokenizer has ids up to {vocab_size - 1}, but {model.pretrained}"
      f" embeds {found.vocab_size}: leave tokenizer.path empty for its own."
    )
  if found.position_offset and found.pad_token_id != prepared.pad_id:
    raise ValueError(
      f"{model.pretrained} counts positions from its pad_token_id,"
      f" {found.pad_token_id}, but the tokenizer pads with {prepared.pad_id}:"
      " leave tokenizer.path empty for its own."
    )
  if model.projection_size and found.projection_size not in (
    0,
    model.projection_size,
  ):
    raise ValueError(
      f"model.projection_size is {model.projection_size}, but"
      f" {model.pretrained} projects to {found.projection_size}: leave it 0."
    )
  return dataclasses.replace(
    found,
    hidden_dropout=model.dropout,
    attention_dropout=model.dropout,
    projection_size=found.projection_size or model.projection_size,
  )


def initial_params(
  config: ml_collections.ConfigDict,
  encoder_config: config_lib.EncoderConfig,
  shardings: Any,
) -> Any:
  """The parameters before training, each put on its devices as it is read.

  Args:
    config: The run's config.
    encoder_config: From `initial_config`.
    shardings: Of the parameters, a tree like them.

  Returns:
    float32 parameters of the towers, and of the head for masked language
    modelling if the run has it.
  """
  model = config.model
  with_head = encoder.MASKED_LM in shardings

  def place_as(shardings):
    by_path = traverse_util.flatten_dict(shardings, sep="/")
    return lambda path, array: jax.device_put(array, by_path[path])

  def draw(what):
    # All is drawn, and what isn't returned is dropped by the compiler.
    key = jax.random.key(config.seed)
    return jax.jit(
      lambda key: what(
        encoder.init_params(encoder_config, model.towers, key, with_head)
      ),
      out_shardings=what(shardings),
    )(key)

  if not model.pretrained:
    return draw(lambda tree: tree)
  first = next(name for name in shardings if name != encoder.MASKED_LM)
  _, params = pretrained.load(
    model.pretrained,
    model.revision,
    model.dtype,
    place_as(shardings[first]),
  )
  if encoder_config.projection_size and encoder.PROJECTION not in params:
    params[encoder.PROJECTION] = draw(lambda tree: tree[first])[
      encoder.PROJECTION
    ]
  params = encoder.with_towers(params, model.towers)
  if with_head:
    head = pretrained.load_masked_lm(
      model.pretrained, model.revision, place_as(shardings[encoder.MASKED_LM])
    )
    if head is None:
      print(
        f"{model.pretrained} has no head for masked language modelling: a new"
        " one is drawn."
      )
      head = draw(lambda tree: tree[encoder.MASKED_LM])
    params[encoder.MASKED_LM] = head
  return params


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
) -> tuple[config_lib.EncoderConfig, step.TrainState, Any]:
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
    encoder_config = initial_config(config, prepared)
  else:
    where = f"step {last} in {checkpoints.directory}"
    found = checkpoints.describe(last)
    contract_lib.check_same(prepared.contract, found.contract, where)
    check_same_data(
      prepared.store.fingerprint, found.provenance["token_store"], where
    )
    encoder_config = config_lib.EncoderConfig(**found.encoder)
  contract = prepared.contract
  config_lib.check_lengths(
    encoder_config,
    {name: contract.role(name).max_length for name in contract_lib.ROLES},
  )

  def init(params):
    return step.init_state(params, optimizer)

  abstract = jax.eval_shape(
    init,
    encoder.abstract_params(
      encoder_config, config.model.towers, bool(config.batch.masked)
    ),
  )
  shardings = sharding.state_shardings(abstract, mesh, config.mesh.fsdp)
  print(sharding.describe(abstract.params, shardings.params))
  if last is None:
    params = initial_params(config, encoder_config, shardings.params)
    state = jax.jit(init, out_shardings=shardings, donate_argnums=0)(params)
  else:
    state = checkpoints.restore(last, checkpoint.abstract(abstract, shardings))
    print(f"Going on from {where}.")
  return encoder_config, state, shardings


def make_masked_lm(encoder_config: config_lib.EncoderConfig) -> step.MaskedLM:
  """Masked language modelling in the passage tower, which reads sentences."""

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
    return states, (params[encoder.MASKED_LM], tower["embeddings"]["token"])

  def score(states, weights):
    return masked_lm.logits(encoder_config, *weights, states)

  return step.MaskedLM(read, score)


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
    make_masked_lm(encoder_config) if config.batch.masked else None,
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
