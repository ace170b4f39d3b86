"""Refuses a run that cannot be trained, before texts are tokenized."""

import dataclasses
import os
from collections.abc import Mapping

import jax
import ml_collections
import tokenizers
from etils import epath

from mlir_jax import config_checks, sharding, workdir
from mlir_jax import contract as contract_lib
from mlir_jax.batches import masking
from mlir_jax.data import preparation, source_settings
from mlir_jax.evals import evaluators, measures, protocols, selection
from mlir_jax.hub import warm_start
from mlir_jax.losses import base, matryoshka, registry
from mlir_jax.models import architecture, pretrained
from mlir_jax.retrieval import encoding
from mlir_jax.training import build, chunking, initial_state


def check_settings(config: ml_collections.ConfigDict) -> None:
  """Refuses a config that cannot be trained, before any file is read.

  Raises:
    ValueError: naming the field.
  """
  config_checks.check(config)
  evaluators.find(config.eval.extra)
  protocols.find(config.eval.protocols, "eval.protocols.", config.eval.extra)
  chosen = selection.parse(config.eval.selection).chosen
  chosen += measures.parse_list(config.eval.measures, "eval.measures")
  measures.check_depth(
    measures.with_default(chosen), config.eval.top_k, "eval.top_k"
  )
  losses = registry.make(config.loss)
  registry.check(losses, dataclasses.asdict(build.batch_spec(config)))
  registry.dimensions(config.loss)
  _check_shape(config, losses)
  source_settings.find(config.data.sources.to_dict())
  _check_sources(config)
  _check_guide(config)
  _check_teacher(config)
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
      " step would change the sign of a weight. The product must be below 1."
    )


def _check_shape(
  config: ml_collections.ConfigDict, losses: Mapping[str, base.Loss]
) -> None:
  """Refuses an encoding, or a shape of a new model, that cannot work."""
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
  """Refuses a field that names a place but is never read."""
  data, model = config.data, config.model
  for name in ("root", "tatoeba_root"):
    if data.collection in ("cldr", "sets") and data[name]:
      raise ValueError(
        f"data.{name} is {data[name]!r}, but data.collection is"
        f" {data.collection!r}, which reads no files: set"
        " data.collection=folder."
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


def _check_guide(config: ml_collections.ConfigDict) -> None:
  """Refuses settings of a guide that have no effect."""
  ir = config.loss.ir
  for name, value in ir.items():
    if name.startswith("guide_") and value and not ir.guide:
      raise ValueError(
        f"loss.ir.{name} is {value!r}, but loss.ir.guide is '': name a guide,"
        f" or leave {name} out."
      )
  if ir.guide and not config.batch.retrieval:
    raise ValueError(
      f"loss.ir.guide is {ir.guide!r}, but batch.retrieval is 0, so there is"
      " nothing to mask: set loss.ir.guide=''."
    )


def _check_teacher(config: ml_collections.ConfigDict) -> None:
  """Refuses settings of a teacher that have no effect, or lack a teacher."""
  settings = config.loss.distillation
  if settings.teacher_revision and not settings.teacher:
    raise ValueError(
      "loss.distillation.teacher_revision is"
      f" {settings.teacher_revision!r}, but loss.distillation.teacher is '':"
      " name a teacher, or leave the revision out (the start has"
      " model.revision)."
    )
  if not settings.weight:
    if settings.teacher:
      raise ValueError(
        f"loss.distillation.teacher is {settings.teacher!r}, but"
        " loss.distillation.weight is 0: give a weight above 0, or leave the"
        " teacher out."
      )
    return
  if not (settings.teacher or config.model.pretrained):
    raise ValueError(
      "loss.distillation.teacher is '', which is the model that the run starts"
      " from, but model.pretrained is '', too: name a teacher."
    )
  if not settings.language:
    raise ValueError(
      "loss.distillation.language is '': give the language that the teacher"
      " reads, such as 'en'."
    )


def _check_attention(config: ml_collections.ConfigDict) -> None:
  """Refuses fused attention where it does not work."""
  model = config.model
  if model.attention != "cudnn":
    return
  # A pretrained model has its own heads; `check_fits` checks them.
  size = 0 if model.pretrained else model.hidden_size // model.num_heads
  dropout = initial_state.dropout_rates(model)["attention_dropout"]
  needs = [
    *(["a GPU"] if jax.default_backend() != "gpu" else []),
    *architecture.cudnn_needs(model.dtype, dropout, size, "model."),
    *(["an even batch.row_length"] if config.batch.row_length % 2 else []),
  ]
  if needs:
    raise ValueError(
      f"model.attention='cudnn' needs {' and '.join(needs)}; or use 'xla'."
    )


def check_mesh(
  config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh
) -> None:
  """Raises ValueError if the mesh does not divide a batch or the chunk."""
  for name, size in build.batch_sizes(config).items():
    sharding.check_divides(mesh, size, f"batch.{name}")
  chunking.check_chunk(config.batch.chunk_rows, mesh.shape[sharding.DATA])


def check_fits(
  config: ml_collections.ConfigDict,
  folder: str,
  tokenizer: tokenizers.Tokenizer,
  contract: contract_lib.EncodingContract,
) -> None:
  """Refuses a tokenizer and a contract that the run's encoder cannot use.

  It is called before texts are tokenized, which may take hours.

  Args:
    config: The run's config.
    folder: The run's folder.
    tokenizer: The run's tokenizer.
    contract: The run's contract.

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
  encoder_config = initial_state.initial_config(
    config.model, tokenizer, backbone
  )
  encoding.check_lengths(encoder_config, contract)
  matryoshka.check(
    registry.dimensions(config.loss),
    contract.width(encoder_config.output_size),
  )
  # It refuses what the model's attention cannot do with this encoder.
  dataclasses.replace(
    encoder_config, dtype=config.model.dtype, attention=config.model.attention
  )
  if backbone:
    *_, last = towers = warm_start.towers(backbone)
    for tower, path in towers.items():
      # The last tower reads sentences, so it needs the head.
      pretrained.check(path, bool(config.batch.masked) and tower == last)
