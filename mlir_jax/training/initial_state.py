"""The state that a run starts from: random, pretrained or a checkpoint's."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
import tokenizers
from flax import traverse_util

from mlir_jax import contract as contract_lib
from mlir_jax import sharding
from mlir_jax.checkpoints import manager
from mlir_jax.data import preparation
from mlir_jax.data import tokenizer as tokenizer_lib
from mlir_jax.hub import warm_start
from mlir_jax.models import architecture, encoder, pretrained
from mlir_jax.retrieval import encoding
from mlir_jax.training import resume, step


def dropout_rates(model: ml_collections.ConfigDict) -> dict[str, float]:
  """Returns the rates by their names in the part `model` of a config."""
  rate, attention = model.dropout, model.attention_dropout
  return {
    "dropout": rate,
    "attention_dropout": rate if attention is None else attention,
  }


def initial_config(
  model: ml_collections.ConfigDict,
  tokenizer: tokenizers.Tokenizer,
  backbone: pathlib.Path | None,
) -> architecture.EncoderConfig:
  """Returns the shape of the encoder, pretrained or from scratch.

  Args:
    model: The part `model` of the run's config.
    tokenizer: Its largest id gives the size of the vocabulary.
    backbone: The folder of the pretrained model; None from scratch.

  Raises:
    ValueError: if the pretrained model, the config and the tokenizer do not fit
      together.
  """
  vocab_size = 1 + tokenizer_lib.largest_id(tokenizer)
  pad_id = tokenizer_lib.pad_id(tokenizer)
  rates = dropout_rates(model)
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


def initial_params(
  model: ml_collections.ConfigDict,
  encoder_config: architecture.EncoderConfig,
  shardings: Any,
  backbone: pathlib.Path | None,
  seed: int,
) -> Any:
  """Returns the parameters before training, each array on its devices.

  Args:
    model: The part `model` of the run's config.
    encoder_config: From `initial_config`.
    shardings: A tree like the parameters.
    backbone: The folder of the pretrained model; None from scratch.
    seed: For all parameters that are drawn.

  Returns:
    float32 parameters of the towers, and of the head for masked language
    modelling if `shardings` has it.
  """
  with_head = encoder.MASKED_LM in shardings
  key = jax.random.key(seed)
  if not backbone:
    return _draw(
      lambda key: encoder.init_params(
        encoder_config, model.towers, key, with_head
      ),
      shardings,
      key,
    )

  def load(path, shardings):
    _, params = pretrained.load(
      str(path), dtype=model.dtype, place=_place_as(shardings)
    )
    if encoder_config.projection_size and encoder.PROJECTION not in params:
      params[encoder.PROJECTION] = _draw(
        functools.partial(encoder.init_projection, encoder_config),
        shardings[encoder.PROJECTION],
        key,
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
    *_, sentences = towers.values()  # The last tower reads sentences.
    head = pretrained.load_masked_lm(
      str(sentences), place=_place_as(head_shardings)
    )
    if head is None:
      print(
        f"{model.pretrained} has no head for masked language modelling: a new"
        " one is drawn."
      )
      head = _draw(
        functools.partial(encoder.init_head, encoder_config),
        head_shardings,
        key,
      )
    params[encoder.MASKED_LM] = head
  return params


def _draw(init: Callable[[Any], Any], shardings: Any, key: jax.Array) -> Any:
  """Draws parameters on their devices; compiled, since eager init is slow."""
  return jax.jit(init, out_shardings=shardings)(key)


def _place_as(shardings: Any) -> Callable[[str, Any], jax.Array]:
  """Returns a function (path, array) that puts the array on its devices."""
  by_path: Any = traverse_util.flatten_dict(shardings, sep="/")
  # Each process has the whole array. `device_put` would compare these first.
  return lambda path, array: jax.make_array_from_callback(
    array.shape, by_path[path], array.__getitem__
  )


def check_same_data(ours: str, theirs: str, where: str) -> None:
  """Raises ValueError if a checkpoint was trained on other data.

  Args:
    ours: The fingerprint of the run's token store.
    theirs: The fingerprint in the checkpoint's provenance.
    where: The checkpoint, for the message.
  """
  if ours != theirs:
    raise ValueError(
      f"The token store ({ours[:12]}) is not the one that {where} was"
      f" trained on ({theirs[:12]}): restore the folder, or start in another"
      " --workdir."
    )


def start_config(
  model: ml_collections.ConfigDict,
  prepared: preparation.Prepared,
  backbone: pathlib.Path | None,
  checkpoints: manager.Checkpoints,
  begin: resume.Start,
) -> architecture.EncoderConfig:
  """Returns the encoder's shape, of a new run or of a checkpoint.

  Args:
    model: The part `model` of the run's config.
    prepared: The run's contract and data.
    backbone: The folder of the pretrained model of a new run, if it has one.
    checkpoints: The run's checkpoints.
    begin: From `resume.choose`.

  Raises:
    ContractMismatchError: if the checkpoint has another contract.
    ValueError: if the checkpoint was trained on other data; or if the model
      does not fit the tokenizer or the lengths.
  """
  if begin.step is None:
    encoder_config = initial_config(model, prepared.tokenizer, backbone)
  else:
    where = _name(checkpoints, begin)
    found = checkpoints.read_description(begin.step)
    contract_lib.check_same(prepared.contract, found.contract, where)
    check_same_data(
      prepared.store.fingerprint,
      str(found.provenance.get("token_store")),
      where,
    )
    encoder_config = architecture.of_checkpoint(found.encoder, where)
  encoding.check_lengths(encoder_config, prepared.contract)
  return dataclasses.replace(
    encoder_config,
    dtype=model.dtype,
    remat=model.remat,
    attention=model.attention,
    scan_layers=model.scan_layers,
  )


def start_state(
  encoder_config: architecture.EncoderConfig,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
  checkpoints: manager.Checkpoints,
  begin: resume.Start,
  make_params: Callable[[Any], Any],
  *,
  towers: str,
  with_head: bool,
  fsdp: bool,
) -> tuple[step.TrainState, Any]:
  """Returns the state to go on from, a checkpoint's or a new one.

  Args:
    encoder_config: From `start_config`.
    optimizer: The run's optimizer.
    mesh: The state is placed on it.
    checkpoints: The run's checkpoints.
    begin: From `resume.choose`.
    make_params: Shardings of the parameters -> parameters of a new run.
    towers: "tied" or "separate".
    with_head: Whether there is a head for masked language modelling.
    fsdp: Whether the state is sharded over "data".

  Returns:
    The state and its shardings.
  """

  def init(params):
    return step.init_state(params, optimizer)

  abstract = jax.eval_shape(
    init, encoder.abstract_params(encoder_config, towers, with_head)
  )
  shardings = sharding.state_shardings(abstract, mesh, fsdp)
  print(sharding.parameter_summary(abstract.params, shardings.params))
  if begin.step is None:
    params = make_params(shardings.params)
    state = jax.jit(init, out_shardings=shardings, donate_argnums=0)(params)
    return state, shardings
  state = checkpoints.restore(
    begin.step, sharding.abstract(abstract, shardings)
  )
  if begin.from_step:  # Settings may have changed, so the count starts again.
    zero = jax.jit(jnp.zeros_like, out_shardings=shardings.skipped_in_a_row)
    state = state.replace(skipped_in_a_row=zero(state.skipped_in_a_row))
  print(f"Going on from {_name(checkpoints, begin)}.")
  return state, shardings


def _name(checkpoints: manager.Checkpoints, begin: resume.Start) -> str:
  """Returns a checkpoint's name for messages."""
  return f"step {begin.step} in {checkpoints.directory}"
