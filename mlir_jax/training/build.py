"""From a config to the parts of a run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import optax
from etils import epath

from mlir_jax import checkpoint, sharding, workdir
from mlir_jax import contract as contract_lib
from mlir_jax.batches import batch as batch_lib
from mlir_jax.batches import drawing, masking, shapes
from mlir_jax.data import preparation, token_store
from mlir_jax.evals import evaluators, suite
from mlir_jax.losses import masked_lm as masked_lm_loss
from mlir_jax.losses import registry
from mlir_jax.models import architecture, encoder, masked_lm
from mlir_jax.retrieval import encoding
from mlir_jax.storage import locations, reading
from mlir_jax.training import chunking, optim, outputs, provenance, step


def batch_spec(config: ml_collections.ConfigDict) -> batch_lib.BatchSpec:
  """The global batch that a config asks for."""
  return batch_lib.BatchSpec(
    **batch_sizes(config),
    hard_negatives=config.batch.hard_negatives,
    tied=config.model.towers == "tied",
  )


def batch_sizes(config: ml_collections.ConfigDict) -> dict[str, int]:
  """Stream to the rows of its global batch; 0 leaves it out."""
  return {name: config.batch[name] for name in batch_lib.STREAMS}


def make_plans(
  config: ml_collections.ConfigDict,
  store: token_store.TokenStore,
  mesh: jax.sharding.Mesh,
) -> tuple[shapes.Plan, ...]:
  """The shapes that the run's batches may have."""
  return shapes.make_plans(
    store,
    batch_spec(config),
    config.seed,
    config.data.language_temperature,
    config.train.steps,
    chunk=config.batch.chunk,
    devices=mesh.shape[sharding.DATA],
    most=config.batch.buckets,
  )


def make_masker(
  config: ml_collections.ConfigDict, prepared: preparation.Prepared
) -> masking.Masker | None:
  """What hides words, if the run has a stream for it."""
  if not config.batch.masked:
    return None
  return masking.make_masker(
    prepared.tokenizer,
    **config.data.masking,
    prefix=prepared.contract.sentence.prefix,
  )


def make_optimizer(
  config: ml_collections.ConfigDict,
) -> tuple[optax.Schedule, optax.GradientTransformationExtraArgs]:
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


def make_encode(
  encoder_config: architecture.EncoderConfig,
  contract: contract_lib.EncodingContract,
  mesh: jax.sharding.Mesh,
  shardings: Any,
  chunk: int = 0,
) -> outputs.Encode:
  """What encodes a batch over the mesh, see `outputs.make_encode`.

  Args:
    encoder_config: The encoder's.
    contract: The run's.
    mesh: The mesh.
    shardings: Of the parameters. If they have a head for masked language
      modelling, batches may have masked sentences.
    chunk: Texts encoded at once, over all devices; 0 for all of them.
  """
  return outputs.make_encode(
    chunking.make_encode(
      make_read(encoder_config, contract), mesh, shardings, chunk
    ),
    sharding.replicate(mesh),
    make_vocabulary(encoder_config, mesh, shardings)
    if encoder.MASKED_LM in shardings
    else None,
  )


def make_vocabulary(
  encoder_config: architecture.EncoderConfig,
  mesh: jax.sharding.Mesh,
  shardings: Any,
) -> Callable[[Any], masked_lm_loss.Vocabulary]:
  """What scores tokens: of the passage tower, which reads sentences.

  Args:
    encoder_config: The encoder's.
    mesh: The mesh; the masked texts are split over "data".
    shardings: Of the parameters.

  Returns:
    Parameters -> the output "vocabulary".
  """

  def read(params):
    tower = encoder.tower_params(params, "passage")
    table, _ = encoder.split_table(tower)
    return {"head": params[encoder.MASKED_LM], "table": table}

  def score(params, states):
    return masked_lm.logits(
      encoder_config, params["head"], params["table"], states
    )

  def over_rows(sums):
    return sharding.over_rows(sums, mesh, read(shardings), add=True)

  return lambda params: masked_lm_loss.Vocabulary(
    read(params), score, over_rows
  )


def make_read(
  encoder_config: architecture.EncoderConfig,
  contract: contract_lib.EncodingContract,
) -> chunking.Read:
  """What the step reads of texts: vectors, or states at masked places."""
  embed = encoding.make_embed(encoder_config, contract)

  def read(params, group, texts, token_vectors=None):
    seeds = texts.get("seeds")
    if group == "masked":
      return encoder.masked_states(
        encoder_config, params, "passage", texts, texts["positions"],
        seeds, token_vectors,
      )  # fmt: skip
    return embed(params, group, texts, seeds, token_vectors)

  return read


def jit_step(
  config: ml_collections.ConfigDict,
  contract: contract_lib.EncodingContract,
  schedule: optax.Schedule,
  optimizer: optax.GradientTransformationExtraArgs,
  mesh: jax.sharding.Mesh,
  shardings: step.TrainState,
  encoder_config: architecture.EncoderConfig,
) -> Callable:
  """The train step, jitted for the mesh; it donates the state."""
  train_step = step.make_train_step(
    make_encode(
      encoder_config, contract, mesh, shardings.params, config.batch.chunk
    ),
    registry.make(config.loss),
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
  embed: Callable[..., jax.Array],
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
    streams=drawing.streams_read(config.batch),
    dev_passages=config.eval.dev_passages,
    extra=evaluators.find(config.eval.get("extra", {})),
  )


def describe(
  config: ml_collections.ConfigDict,
  prepared: preparation.Prepared,
  encoder_config: architecture.EncoderConfig,
  folder: str,
  history: Sequence[Mapping[str, Any]] = (),
) -> checkpoint.Description:
  """What stands beside the arrays in the run's checkpoints.

  Args:
    config: The run's config.
    prepared: Its contract and data.
    encoder_config: Its encoder's.
    folder: The run's folder.
    history: From `workdir.read_history`.
  """
  values = config.to_dict()
  backbone = epath.Path(folder) / workdir.BACKBONE
  for name in ("root", "tatoeba_root"):
    if values["data"][name]:  # Found from any directory.
      values["data"][name] = locations.absolute(values["data"][name])
  return checkpoint.Description(
    config=values,
    contract=prepared.contract,
    encoder=architecture.shape_of(encoder_config),
    provenance={
      **provenance.describe(
        prepared.store.fingerprint,
        reading.read_json(backbone) if backbone.exists() else None,
        history,
      ),
      # What training had of each language, for tests of other collections.
      "groups": dict(prepared.collection.groups),
    },
  )
