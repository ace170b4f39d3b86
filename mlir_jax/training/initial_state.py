"""The state that a run starts from: drawn, pretrained, or its last one's."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
import tokenizers
from etils import epath
from flax import traverse_util

from mlir_jax import contract as contract_lib
from mlir_jax import sharding, workdir
from mlir_jax.batches import masking
from mlir_jax.checkpoints import manager
from mlir_jax.data import preparation
from mlir_jax.data import tokenizer as tokenizer_lib
from mlir_jax.hub import warm_start
from mlir_jax.losses import registry
from mlir_jax.models import architecture, encoder, pretrained
from mlir_jax.training import resume, step


def dropout_rates(config: ml_collections.ConfigDict) -> dict[str, float]:
  """The rates by their names in the model's part of the config."""
  rate, attention = config.model.dropout, config.model.attention_dropout
  return {
    "dropout": rate,
    "attention_dropout": rate if attention is None else attention,
  }


def initial_config(
  config: ml_collections.ConfigDict,
  tokenizer: tokenizers.Tokenizer,
  backbone: pathlib.Path | None,
) -> architecture.EncoderConfig:
  """The shape of the encoder, pretrained or from scratch.

  Args:
    config: The run's config.
    tokenizer: It says how large the vocabulary is.
    backbone: The pretrained model's folder.

  Raises:
    ValueError: if the pretrained model and the config do not fit.
  """
  model = config.model
  vocab_size = 1 + tokenizer_lib.largest_id(tokenizer)
  pad_id = tokenizer_lib.pad_id(tokenizer)
  rates = dropout_rates(config)
  if not backbone:
    return architecture.EncoderConfig(
      vocab_size=vocab_size,
      hidden_size=model.hidden_size,
      num_layers=model.num_layers,
      num_heads=model.num_heads,
      intermediate_size=model.intermediate_size,
      max_positions=model.max_positions,
      hidden_dropout=rates["dropout"],
      attention_dropout=rates["attention_dropout"],
      pad_token_id=pad_id,
      dtype=model.dtype,
      projection_size=model.projection_size,
    )
  towers = warm_start.towers(backbone)
  if len(towers) > 1 and model.towers == "tied":
    raise ValueError(
      f"model.towers is 'tied', but {model.pretrained} has two towers: set"
      " model.towers='separate'."
    )
  found = pretrained.load_config(next(iter(towers.values())), model.dtype)
  if vocab_size > found.vocab_size:
    raise ValueError(
      f"The tokenizer has ids up to {vocab_size - 1}, but {model.pretrained}"
      f" embeds {found.vocab_size}: leave tokenizer.path empty for its own."
    )
  if found.position_offset and found.pad_token_id != pad_id:
    raise ValueError(
      f"{model.pretrained} counts positions from its pad_token_id,"
      f" {found.pad_token_id}, but the tokenizer pads with {pad_id}:"
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
    hidden_dropout=rates["dropout"],
    attention_dropout=rates["attention_dropout"],
    projection_size=found.projection_size or model.projection_size,
  )


def check_fits(
  config: ml_collections.ConfigDict,
  folder: str,
  tokenizer: tokenizers.Tokenizer,
  contract: contract_lib.EncodingContract,
) -> None:
  """Refuses what the run's encoder cannot do, before any text is tokenized.

  Args:
    config: The run's config.
    folder: The run's folder.
    tokenizer: Its tokenizer.
    contract: Its contract.

  Raises:
    ValueError: naming the field or the tensor.
  """
  if not contract.normalize and registry.need_unit_vectors(
    registry.make(config.loss)
  ):
    raise ValueError(
      "encoding.normalize is False, but the losses are written for cosines:"
      " set it to True."
    )
  contract_lib.check_prefixes(contract, tokenizer)
  if config.batch.masked:
    masking.make_masker(tokenizer, **config.data.masking)
  if workdir.is_trained(epath.Path(folder)):
    return  # The encoder is the checkpoint's.
  backbone = preparation.fetch_backbone(config, folder)
  encoder_config = initial_config(config, tokenizer, backbone)
  check_lengths(encoder_config, contract)
  if backbone:
    *_, last = towers = warm_start.towers(backbone)
    for tower, path in towers.items():  # The last one reads sentences.
      pretrained.check(path, bool(config.batch.masked) and tower == last)


def check_lengths(
  encoder_config: architecture.EncoderConfig,
  contract: contract_lib.EncodingContract,
) -> None:
  """Raises ValueError if a role's texts may be longer than the encoder's."""
  architecture.check_lengths(
    encoder_config,
    {name: contract.role(name).max_length for name in contract_lib.ROLES},
  )


def initial_params(
  config: ml_collections.ConfigDict,
  encoder_config: architecture.EncoderConfig,
  shardings: Any,
  backbone: pathlib.Path | None,
) -> Any:
  """The parameters before training, each put on its devices as it is read.

  Args:
    config: The run's config.
    encoder_config: From `initial_config`.
    shardings: Of the parameters, a tree like them.
    backbone: The pretrained model's folder.

  Returns:
    float32 parameters of the towers, and of the head for masked language
    modelling if the run has it.
  """
  model = config.model
  with_head = encoder.MASKED_LM in shardings

  def place_as(shardings):
    by_path: Any = traverse_util.flatten_dict(shardings, sep="/")
    # Each process has the whole array; device_put would compare them first.
    return lambda path, array: jax.make_array_from_callback(
      array.shape, by_path[path], array.__getitem__
    )

  def draw(init, shardings):
    return jax.jit(init, out_shardings=shardings)(jax.random.key(config.seed))

  if not backbone:
    return draw(
      lambda key: encoder.init_params(
        encoder_config, model.towers, key, with_head
      ),
      shardings,
    )

  def load(path, shardings):
    _, params = pretrained.load(
      str(path), dtype=model.dtype, place=place_as(shardings)
    )
    if encoder_config.projection_size and encoder.PROJECTION not in params:
      params[encoder.PROJECTION] = draw(
        functools.partial(encoder.init_projection, encoder_config),
        shardings[encoder.PROJECTION],
      )
    return params

  towers = warm_start.towers(backbone)
  if "both" in towers:
    first = next(name for name in shardings if name != encoder.MASKED_LM)
    params = encoder.with_towers(load(backbone, shardings[first]), model.towers)
  else:
    params = {
      f"{tower}_encoder": load(path, shardings[f"{tower}_encoder"])
      for tower, path in towers.items()
    }
  if with_head:
    head_shardings = shardings[encoder.MASKED_LM]
    *_, sentences = towers.values()  # The tower that reads them has it.
    head = pretrained.load_masked_lm(
      str(sentences), place=place_as(head_shardings)
    )
    if head is None:
      print(
        f"{model.pretrained} has no head for masked language modelling: a new"
        " one is drawn."
      )
      head = draw(
        functools.partial(encoder.init_head, encoder_config), head_shardings
      )
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
  checkpoints: manager.Checkpoints,
  folder: str,
  begin: resume.Start,
) -> tuple[architecture.EncoderConfig, step.TrainState, Any]:
  """The state to go on from: a checkpoint's, or a new one.

  Args:
    config: The run's config.
    prepared: Its contract and data.
    optimizer: Its optimizer.
    mesh: Where the state shall live.
    checkpoints: The run's.
    folder: The run's folder.
    begin: From `resume.choose`.

  Returns:
    The encoder's config, the state, and the state's shardings.

  Raises:
    ContractMismatchError: if the checkpoint's contract is another.
    ValueError: if the checkpoint is of other data, or the model and the
      tokenizer, or the model and the lengths, do not fit.
  """
  if begin.step is None:
    backbone = preparation.fetch_backbone(config, folder)
    encoder_config = initial_config(config, prepared.tokenizer, backbone)
  else:
    where = f"step {begin.step} in {checkpoints.directory}"
    found = checkpoints.read_description(begin.step)
    contract_lib.check_same(prepared.contract, found.contract, where)
    check_same_data(
      prepared.store.fingerprint,
      str(found.provenance.get("token_store")),
      where,
    )
    encoder_config = architecture.of_checkpoint(found.encoder, where)
  check_lengths(encoder_config, prepared.contract)
  encoder_config = dataclasses.replace(
    encoder_config,
    dtype=config.model.dtype,
    remat=config.model.remat,
    attention=config.model.attention,
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
  print(sharding.parameter_summary(abstract.params, shardings.params))
  if begin.step is None:
    params = initial_params(config, encoder_config, shardings.params, backbone)
    state = jax.jit(init, out_shardings=shardings, donate_argnums=0)(params)
  else:
    state = checkpoints.restore(
      begin.step, sharding.abstract(abstract, shardings)
    )
    if begin.from_step:  # What was changed shall have its chance.
      zero = jax.jit(jnp.zeros_like, out_shardings=shardings.skipped_in_a_row)
      state = state.replace(skipped_in_a_row=zero(state.skipped_in_a_row))
    print(f"Going on from {where}.")
  return encoder_config, state, shardings
