"""One training run from its config: prepare, build, resume, loop, report."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from mlir_jax import contract as contract_lib
from mlir_jax import prepare, workdir
from mlir_jax.data import reader
from mlir_jax.evals import suite
from mlir_jax.mesh import sharding
from mlir_jax.models import encoder, pretrained
from mlir_jax.retrieval import encoding
from mlir_jax.training import (
  checkpoint,
  loop,
  optim,
  progress,
  provenance,
  step,
)

STREAMS = ("retrieval", "parallel", "monolingual")


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
  config: ml_collections.ConfigDict, prepared: prepare.Prepared
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
  vocab_size = prepared.tokenizer.get_vocab_size()
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
      f"The tokenizer has {vocab_size} pieces, but {model.pretrained} embeds"
      f" {encoder_config.vocab_size}: set tokenizer.path to its own."
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
      f" trained on ({theirs[:12]}): the files under data.root have changed."
      " Restore them, or start in another --workdir."
    )


def start_state(
  config: ml_collections.ConfigDict,
  prepared: prepare.Prepared,
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


def train(config: ml_collections.ConfigDict, folder: str) -> dict[str, float]:
  """Trains, or goes on training, until `train.steps` steps are taken.

  Args:
    config: From `config.default` and a config file.
    folder: The run's folder: checkpoints, metrics, results.

  Returns:
    The final results, {"test/de/mrr@100": value}, as in the report.

  Raises:
    ValueError: if a setting cannot be honoured; it names the field.
    loop.Preempted: if the run was asked to stop, after saving.
    loop.NonFiniteError: if too many steps in a row were not finite.
  """
  stop = loop.StopSignal().install()
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.model)
  losses = loss_settings(config.loss)
  batch_sizes = {name: config.batch[name] for name in STREAMS}
  rows = check_settings(config, losses, batch_sizes, mesh)
  schedule, optimizer = make_optimizer(config)
  prepared = prepare.prepare(config, folder)
  checkpoints = checkpoint.Checkpoints(
    f"{folder}/{workdir.CHECKPOINTS}", config.train.keep
  )
  encoder_config, state, shardings = start_state(
    config, prepared, optimizer, mesh, checkpoints
  )
  embed = encoding.make_embed(encoder_config, prepared.contract)
  text_encoder = encoding.TextEncoder(
    prepared.contract,
    prepared.tokenizer,
    prepared.pad_id,
    embed,
    mesh,
    config.eval.batch_size,
  )
  evaluation = suite.Suite(
    prepared.collection,
    prepared.tests,
    text_encoder,
    folder,
    top_k=config.eval.top_k,
  )
  description = checkpoint.Description(
    config=config.to_dict(),
    contract=prepared.contract,
    encoder=dataclasses.asdict(encoder_config),
    provenance=provenance.describe(prepared.store.fingerprint),
  )
  train_step = jax.jit(
    step.make_train_step(
      embed,
      losses,
      optimizer,
      schedule,
      config.seed,
      sharding.replicate(mesh),
    ),
    donate_argnums=0,
    out_shardings=(shardings, sharding.replicated(mesh)),
  )
  first_step = int(state.step)
  if config.eval.at_start and not first_step:
    evaluation.table(state.params, 0)
  log = progress.Progress(
    folder,
    first_step=first_step,
    last_step=config.train.steps,
    sequences_per_step=sequences_per_step(config.batch),
  )

  def evaluate_dev(state, taken):
    results = evaluation.dev(state.params)
    if not results:
      return None
    log.evaluation(taken, results)
    log.say(f"Step {taken:,}: {suite.one_line(results)}")
    return results[suite.SELECTION]

  try:
    state = loop.train_loop(
      train_step,
      state,
      reader.batches(
        config.data.reader,
        prepared.store,
        reader.BatchSpec(**config.batch),
        config.seed,
        config.data.language_temperature,
        first_step,
        config.train.steps,
        rows,
        config.data.prefetch,
      ),
      place=lambda batch: sharding.place_batch(batch, mesh, rows, batch_sizes),
      last_step=config.train.steps,
      progress=log,
      save=lambda taken, state, dev: checkpoints.save(
        taken, state, description, dev
      ),
      evaluate_dev=evaluate_dev,
      stop=stop,
      log_every=config.train.log_every,
      eval_every=config.eval.every,
      checkpoint_every=config.train.checkpoint_every,
      max_nonfinite_steps=config.train.max_nonfinite_steps,
    )
  finally:
    log.close()
    checkpoints.close()  # Waits for what is being saved.
  results = evaluation.table(state.params, config.train.steps)
  print(evaluation.report())
  return results


def check_settings(
  config: ml_collections.ConfigDict,
  losses: step.LossSettings,
  batch_sizes: Mapping[str, int],
  mesh: jax.sharding.Mesh,
) -> dict[str, np.ndarray]:
  """Refuses what cannot be trained before anything is read.

  Returns:
    Stream to the rows of its global batch that this host reads.

  Raises:
    ValueError: naming the field.
  """
  step.check_losses(losses, batch_sizes)
  for name in ("steps", "log_every", "checkpoint_every", "keep"):
    if config.train[name] < 1:
      raise ValueError(f"train.{name} is {config.train[name]}; at least 1.")
  return {
    name: sharding.host_rows(mesh, size, f"batch.{name}")
    for name, size in batch_sizes.items()
    if size
  }


def sequences_per_step(batch: ml_collections.ConfigDict) -> int:
  """How many texts a step encodes."""
  pairs = batch.retrieval * (2 + batch.hard_negatives)
  return pairs + 2 * batch.parallel + batch.monolingual
