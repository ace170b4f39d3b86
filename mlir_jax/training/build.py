"""Builds the parts of a run from its config; the config is read here."""

import contextlib
import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import optax
from etils import epath

from mlir_jax import contract as contract_lib
from mlir_jax import extensions, sharding, workdir
from mlir_jax.batches import batch as batch_lib
from mlir_jax.batches import drawing, masking, packing, reader, row_plans
from mlir_jax.batches import mixture as mixture_lib
from mlir_jax.checkpoints import manager, metadata
from mlir_jax.data import (
  guide_vectors,
  preparation,
  records,
  source_settings,
  token_store,
)
from mlir_jax.evals import (
  evaluators,
  measures,
  protocols,
  report,
  selection,
  suite,
)
from mlir_jax.evals.protocols import language_protocol
from mlir_jax.losses import masked_lm as masked_lm_loss
from mlir_jax.losses import registry
from mlir_jax.models import architecture, encoder, layers, masked_lm
from mlir_jax.retrieval import encoding
from mlir_jax.storage import locations, reading
from mlir_jax.training import (
  chunking,
  compiled_step,
  initial_state,
  optim,
  outputs,
  progress,
  provenance,
  resume,
  step,
  timetable,
)


def batch_spec(config: ml_collections.ConfigDict) -> batch_lib.BatchSpec:
  """Returns the sizes of the global batch."""
  return batch_lib.BatchSpec(
    **batch_sizes(config),
    hard_negatives=config.batch.hard_negatives,
    tied=config.model.towers == "tied",
    scores=config.loss.score_distillation.weight > 0,
  )


def batch_sizes(config: ml_collections.ConfigDict) -> dict[str, int]:
  """Returns stream to rows of the global batch; 0 leaves a stream out."""
  return {name: config.batch[name] for name in batch_lib.STREAMS}


def make_mixture(config: ml_collections.ConfigDict) -> mixture_lib.Mixture:
  """Returns how sources and languages share the rows of a batch."""
  sources = source_settings.find(config.data.sources.to_dict())
  return mixture_lib.Mixture(
    config.data.language_temperature,
    source_settings.weights(sources),
    one_source=config.batch.mixing == "one_source",
  )


def make_plans(
  config: ml_collections.ConfigDict,
  store: token_store.TokenStore,
  mesh: jax.sharding.Mesh,
) -> row_plans.Plans:
  """Returns the shapes that the run's batches may have, the usual one first."""
  return row_plans.make_plans(
    store,
    batch_spec(config),
    config.seed,
    make_mixture(config),
    config.train.steps,
    **row_settings(config, mesh),
  )


def row_settings(
  config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh
) -> dict[str, Any]:
  """Returns the arguments of `row_plans.choose` for a config and a mesh."""
  return {
    "chunk_rows": config.batch.chunk_rows,
    "row_length": config.batch.row_length,
    "devices": mesh.shape[sharding.DATA],
    "multiple": packing.multiple(mesh.devices.flat[0].platform),
    "mask_rate": config.data.masking.rate,
    "compilation": row_plans.compilation(mesh.devices.flat[0].platform),
  }


def make_masker(
  config: ml_collections.ConfigDict, prepared: preparation.Prepared
) -> masking.Masker | None:
  """Returns the masker, if the run has masked language modelling."""
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
  """Returns the schedule of learning rates and the optimizer."""
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
  chunk_rows: int = 0,
) -> outputs.Encode:
  """Returns the function that encodes a batch; see `outputs.make_encode`.

  Args:
    encoder_config: The encoder's shape.
    contract: The run's contract.
    mesh: The mesh.
    shardings: Of the parameters. With a head for masked language modelling,
      batches may have masked sentences.
    chunk_rows: Rows that are encoded at a time, over all devices; 0 for all.
  """
  read = make_read(encoder_config, contract)
  if mesh.size == 1 and mesh.devices.flat[0].platform == "cpu":
    read = chunking.in_halves(read)
  return outputs.make_encode(
    chunking.make_encode(
      read,
      mesh,
      shardings,
      chunk_rows,
      functools.partial(layers.stack, encoder_config),
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
  """Returns the function that makes the output "vocabulary" of parameters.

  It scores tokens with the passage tower, which reads sentences.

  Args:
    encoder_config: The encoder's shape.
    mesh: The mesh; the masked texts are split over "data".
    shardings: Of the parameters.
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
  """Returns the function that encodes texts: to vectors, or masked states."""
  embed = encoding.make_embed(encoder_config, contract)

  def read(params, group, blocks, token_vectors=None):
    if group == "masked":
      return encoder.masked_states(
        encoder_config, params, "passage", blocks, token_vectors
      )
    return embed(params, group, blocks, token_vectors)

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
  """Returns the train step, jitted for the mesh; it donates the state."""
  train_step = step.make_train_step(
    make_encode(
      encoder_config, contract, mesh, shardings.params, config.batch.chunk_rows
    ),
    registry.make(config.loss),
    optimizer,
    schedule,
    config.seed,
    sharding.replicate(mesh),
    registry.dimensions(config.loss),
  )
  return jax.jit(
    train_step,
    donate_argnums=0,
    out_shardings=(shardings, sharding.replicated(mesh)),
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
  """Returns the encoder's shape, the state to go on from and its shardings.

  It prints which modules of the user have changed since the checkpoint.

  Raises:
    ContractMismatchError, ValueError: as `initial_state.start_config`.
  """
  backbone = None
  if begin.step is None:
    backbone = preparation.fetch_backbone(config, folder)
  encoder_config = initial_state.start_config(
    config.model, prepared, backbone, checkpoints, begin
  )
  state, shardings = initial_state.start_state(
    encoder_config,
    optimizer,
    mesh,
    checkpoints,
    begin,
    lambda shardings: initial_state.initial_params(
      config.model, encoder_config, shardings, backbone, config.seed
    ),
    towers=config.model.towers,
    with_head=bool(config.batch.masked),
    fsdp=config.mesh.fsdp,
  )
  if begin.step is not None:
    before = checkpoints.read_description(begin.step).provenance.get(
      "user_code", {}
    )
    for line in extensions.describe_changes(before, _user_code(config)):
      print(line)
  return encoder_config, state, shardings


def compile_step(
  config: ml_collections.ConfigDict,
  prepared: preparation.Prepared,
  encoder_config: architecture.EncoderConfig,
  jitted: Callable,
  state: step.TrainState,
  plans: row_plans.Plans,
  mesh: jax.sharding.Mesh,
) -> compiled_step.CompiledStep:
  """Compiles the train step for the shapes of batches; prints what it costs.

  Args:
    config: The run's config.
    prepared: The run's data.
    encoder_config: The encoder's shape.
    jitted: From `jit_step`.
    state: The state before the first step.
    plans: From `make_plans`.
    mesh: The mesh.
  """
  spec = batch_spec(config)
  train_step = compiled_step.CompiledStep(
    jitted,
    state,
    [
      compiled_step.abstract_batch(
        spec,
        plan,
        mesh,
        positives=spec.positives(prepared.store.max_positives),
        widths=prepared.widths,
      )
      for plan in plans.plans
    ],
    ahead=len(plans.plans) - plans.last_resort,
  )
  operations = compiled_step.step_flops(
    config,
    encoder_config,
    plans,
    prepared.widths,
    prepared.contract.truncate_dim,
  )
  print(f"A step takes {operations} over {mesh.size} devices.")
  return train_step


def make_batches(
  config: ml_collections.ConfigDict,
  prepared: preparation.Prepared,
  plans: row_plans.Plans,
  masker: masking.Masker | None,
  mesh: jax.sharding.Mesh,
  first_step: int,
) -> Generator[tuple[int, Any]]:
  """Yields (step, batch on the devices) for all steps that are left.

  It prints which reader makes them.
  """
  kind = reader.choose(config.data.reader)
  print(f"Batches: {reader.KINDS[kind]} (data.reader={kind}).")
  mixture, spec = make_mixture(config), batch_spec(config)
  for line in drawing.describe_sources(prepared.store, spec, mixture):
    print(line)
  batches = reader.batches(
    kind,
    prepared.store,
    spec,
    plans.plans,
    seed=config.seed,
    mixture=mixture,
    start=first_step,
    stop=config.train.steps,
    host_rows=functools.partial(sharding.host_rows, mesh),
    prefetch=config.data.prefetch,
    masker=masker,
    guide=prepared.guide,
    teacher=prepared.teacher,
  )

  def place():
    with contextlib.closing(batches):
      for number, batch in batches:
        yield number, sharding.place_batch(batch, mesh)

  return place()


def make_timetable(config: ml_collections.ConfigDict) -> timetable.Timetable:
  """Returns when the run logs, evaluates, saves and ends."""
  return timetable.Timetable(
    last_step=config.train.steps,
    log_every=config.train.log_every,
    eval_every=config.eval.every,
    save_every=config.train.checkpoint_every,
    max_nonfinite_steps=config.train.max_nonfinite_steps,
  )


def make_progress(
  config: ml_collections.ConfigDict, folder: str, first_step: int
) -> progress.Progress:
  """Opens the run's log and draws its progress bar."""
  return progress.Progress(
    folder,
    first_step=first_step,
    last_step=config.train.steps,
    sequences_per_step=sequences_per_step(config.batch),
    local_dir=config.hosts.local_dir,
  )


def sequences_per_step(batch: ml_collections.ConfigDict) -> int:
  """Returns how many texts a step encodes, from the part `batch`."""
  pairs = batch.retrieval * (2 + batch.hard_negatives)
  return pairs + 2 * batch.parallel + batch.monolingual + batch.masked


def make_suite(
  config: ml_collections.ConfigDict,
  prepared: preparation.Prepared,
  encoder_config: architecture.EncoderConfig,
  mesh: jax.sharding.Mesh,
  folder: str,
) -> suite.Suite:
  """Returns the run's evaluations.

  Raises:
    ValueError: if a language of eval.selection has no dev set.
  """
  chosen = selection.parse(config.eval.selection)
  chosen.check(_dev_languages(prepared))
  text_encoder = encoding.TextEncoder(
    prepared.contract,
    prepared.tokenizer,
    encoding.make_embed(encoder_config, prepared.contract),
    mesh,
    config.eval.batch_size,
  )
  extra = evaluators.find(config.eval.extra)
  dev, dev_notes = language_protocol.find_dev(
    config.eval.diagnostics_root,
    prepared.tests,
    prepared.translation_tests,
    records.BadRecords(config.data.on_bad_record),
    extra,
  )
  return suite.Suite(
    prepared.tests,
    prepared.translation_tests,
    _groups(config, prepared),
    text_encoder,
    f"{folder}/{workdir.RESULTS}",
    top_k=config.eval.top_k,
    trained_on=source_settings.trained_on(
      prepared.collection,
      source_settings.find(config.data.sources.to_dict()),
    ),
    streams=drawing.streams_read(config.batch),
    dev_passages=config.eval.dev_passages,
    extra=extra | dev,
    chosen_protocols=protocols.find(
      config.eval.protocols, "eval.protocols.", extra | dev
    ),
    mining_tests=(
      prepared.collection.mining_tests() if config.eval.protocols else ()
    ),
    selection=chosen,
    chosen=measures.parse_list(config.eval.measures, "eval.measures"),
    notes=[
      chosen.describe(_dev_languages(prepared)),
      *guide_vectors.describe_all(prepared.frozen(), config.loss),
      *dev_notes,
    ],
  )


def _groups(
  config: ml_collections.ConfigDict, prepared: preparation.Prepared
) -> dict[str, str]:
  """Returns each language's group in the report."""
  pairs = set()
  if config.batch.retrieval:
    sources = source_settings.find(config.data.sources.to_dict())
    left_out = source_settings.left_out(sources)
    pairs = {
      group.language
      for group in prepared.store.groups("retrieval")
      if group.source not in left_out
    }
  return report.with_pairs(prepared.collection.groups, pairs)


def _dev_languages(prepared: preparation.Prepared) -> set[str]:
  return {test.language for test in prepared.tests if test.split == "dev"}


def make_description(
  config: ml_collections.ConfigDict,
  prepared: preparation.Prepared,
  encoder_config: architecture.EncoderConfig,
  folder: str,
  history: Sequence[Mapping[str, Any]] = (),
) -> metadata.Description:
  """Returns what each checkpoint of the run stores next to the arrays.

  Args:
    config: The run's config.
    prepared: The run's contract and data.
    encoder_config: The encoder's shape.
    folder: The run's folder.
    history: From `workdir.read_history`.
  """
  values = config.to_dict()
  backbone = epath.Path(folder) / workdir.BACKBONE
  for name in ("root", "tatoeba_root"):
    if values["data"][name]:  # An absolute path is found from any folder.
      values["data"][name] = locations.absolute(values["data"][name])
  return metadata.Description(
    config=values,
    contract=prepared.contract,
    encoder=architecture.shape_of(encoder_config),
    provenance={
      **provenance.gather(
        prepared.store.fingerprint,
        reading.read_json(backbone) if backbone.exists() else None,
        history,
        _user_code(config),
      ),
      # The groups of languages, for tests on other collections.
      "groups": _groups(config, prepared),
      "selection": selection.parse(config.eval.selection).describe(
        _dev_languages(prepared)
      ),
      **prepared.frozen(),
    },
  )


def _user_code(config: ml_collections.ConfigDict) -> dict[str, str]:
  """Returns module to hash of the user's code that the config names."""
  return extensions.fingerprints(*extensions.named_by(config.to_dict()))
