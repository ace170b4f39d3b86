"""The exact train step, compiled for TPUs that one need not have.

libtpu compiles for a slice by its name. What comes out is what a run there
would start with: its memory, its collectives, its kernels. Times are bounds,
not forecasts: each part at the rate that its maker's table gives, all of them
at once.
"""

import dataclasses
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.experimental import topologies

from mlir_jax import checkpoint, workdir
from mlir_jax import contract as contract_lib
from mlir_jax.batches import batch as batch_lib
from mlir_jax.data import masking, preparation, shapes, tokens
from mlir_jax.mesh import chips, compiled, sharding
from mlir_jax.models import config as config_lib
from mlir_jax.models import encoder, flops, pretrained
from mlir_jax.training import build, chunking, compiling, start, step

SHARDINGS = ("replicated", "fsdp")

# Shapes of backbones that configs name, as their config.json says on the hub:
# a plan needs no more of them, and no network.
_BACKBONES = {
  "FacebookAI/xlm-roberta-base": {
    "model_type": "xlm-roberta",
    "vocab_size": 250_002,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
  },
  "FacebookAI/xlm-roberta-large": {
    "model_type": "xlm-roberta",
    "vocab_size": 250_002,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
  },
  "google-bert/bert-base-multilingual-cased": {
    "model_type": "bert",
    "vocab_size": 119_547,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
  },
  "intfloat/multilingual-e5-small": {
    "model_type": "bert",
    "vocab_size": 250_037,
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
  },
}

# On a matrix unit of bfloat16 a float32 product with precision=HIGHEST takes
# six passes.
_PASSES = 6

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass
class Row:
  """A step with some settings on some chips; bytes and times of one chip.

  Attributes:
    batch: batch.retrieval, or the first stream that there is.
    texts: Texts that a step encodes.
    chunk: batch.chunk.
    chunks: In how many parts they are encoded; 1 for at once.
    sharding: "replicated" or "fsdp".
    compile_seconds: What compiling took.
    problem: Why there is no step; "" if there is one.
    memory: As `compiled.memory` gives it.
    model_flops: Operations of the step that MFU counts.
    flops: All operations, those that several chips repeat, too.
    traffic: Bytes to and from HBM, at least.
    collectives: One each kind and loop: "kind", "loops", "runs", "sent_bytes".
    seconds: What bounds the step to its time in seconds: "compute", "HBM" and
      "ICI", each alone at its full rate.
    mfu: Model FLOPs utilization, at most.
    texts_per_second: Over all chips, at most.
    chip_hours: Of all train.steps, at least.
  """

  batch: int
  texts: int
  chunk: int
  chunks: int
  sharding: str
  compile_seconds: float = 0.0
  problem: str = ""
  memory: Mapping[str, int] = dataclasses.field(default_factory=dict)
  model_flops: float = 0.0
  flops: float = 0.0
  traffic: int = 0
  collectives: Sequence[Mapping[str, Any]] = ()
  seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
  mfu: float = 0.0
  texts_per_second: float = 0.0
  chip_hours: float = 0.0

  @property
  def binds(self) -> str:
    """Which of the three bounds is the highest."""
    return max(self.seconds, key=self.seconds.__getitem__)


def make_mesh(
  config: ml_collections.ConfigDict, topology: str
) -> tuple[chips.Chip, tuple[int, ...], jax.sharding.Mesh]:
  """The chips of a slice, its shape, and its mesh, all by its name.

  Raises:
    ValueError: if there is no such slice, or it cannot be laid out as the
      config says.
    ImportError: without libtpu.
  """
  chip, axes = chips.parse(topology)
  try:
    import libtpu  # noqa: F401
  except ImportError as error:
    raise ImportError(
      "Compiling for TPUs needs libtpu: pip install mlir_jax[tpu]."
    ) from error
  for name, value in {
    # It shall ask no metadata server, and share the machine: it only compiles.
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # Or else it complains that it doesn't know them.
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # Products that are fused three deep overflowed its threads' 64 kB.
    "LIBTPU_INIT_ARGS": "--fibers_default_thread_stack_size=1048576",
  }.items():
    os.environ.setdefault(name, value)
  try:
    found = topologies.get_topology_desc(
      topology, platform="tpu", **dict(chip.options)
    )
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(f"--topology={topology}: {error}") from error
  mesh = sharding.make_mesh(
    config.mesh.data, config.mesh.model, devices=found.devices
  )
  return chip, axes, mesh


def encoder_config(
  config: ml_collections.ConfigDict, file: str = ""
) -> config_lib.EncoderConfig:
  """The shape of the run's encoder, without its weights or tokenizer.

  Args:
    config: The run's.
    file: A config.json in the layout of Hugging Face; "" for what is known of
      model.pretrained.

  Raises:
    ValueError: if nothing is known of it.
  """
  model = config.model
  if file:
    shape = config_lib.read(epath.Path(file), model.dtype)
  elif not model.pretrained:
    shape = config_lib.EncoderConfig(
      vocab_size=config.tokenizer.vocab_size,
      hidden_size=model.hidden_size,
      num_layers=model.num_layers,
      num_heads=model.num_heads,
      intermediate_size=model.intermediate_size,
      max_positions=model.max_positions,
      dtype=model.dtype,
    )
  elif workdir.is_url(model.pretrained):
    folder = workdir.copy_folder(model.pretrained, ("*.json",))
    shape = pretrained.load_config(pathlib.Path(folder), model.dtype)
  elif pathlib.Path(model.pretrained).is_dir():
    shape = pretrained.load_config(pathlib.Path(model.pretrained), model.dtype)
  elif model.pretrained in _BACKBONES:
    hf = _BACKBONES[model.pretrained]
    shape = config_lib.EncoderConfig.from_hf(hf, model.dtype)
  else:
    raise ValueError(
      f"The shape of {model.pretrained} is not known here: give its"
      f" config.json with --encoder=FILE. Known are {', '.join(_BACKBONES)}."
    )
  rates = start.dropout_rates(config)
  return dataclasses.replace(
    shape,
    hidden_dropout=rates["dropout"],
    attention_dropout=rates["attention_dropout"],
    projection_size=shape.projection_size or model.projection_size,
    remat=model.remat,
    attention=model.attention,
  )


def contract(
  config: ml_collections.ConfigDict,
) -> contract_lib.EncodingContract:
  """The config's encoding contract, of no tokenizer."""
  settings = preparation.encoding_settings(config, None)
  return contract_lib.EncodingContract(
    pooling=settings["pooling"],
    normalize=settings["normalize"],
    title_joiner=settings["title_joiner"],
    tokenizer_fingerprint="",
    golden_ids=(),
    **{
      role: contract_lib.Role(
        prefix=settings[f"{role}.prefix"],
        max_length=settings[f"{role}.max_length"],
        tower="query" if role == "query" else "passage",
      )
      for role in contract_lib.ROLES
    },
  )


def full_plan(config: ml_collections.ConfigDict, devices: int) -> shapes.Plan:
  """The buckets of a batch all of whose texts are as long as they may be."""
  spec = build.batch_spec(config)
  roles = contract(config)
  lengths = {name: roles.role(name).max_length for name in contract_lib.ROLES}
  queries = [lengths["query"]] * spec.retrieval
  passages = [lengths["passage"]] * spec.retrieval * (1 + spec.hard_negatives)
  sentences = [lengths["sentence"]] * (2 * spec.parallel + spec.monolingual)
  of_group = {
    "query": queries,
    "passage": passages + sentences + (queries if spec.tied else []),
    "masked": [lengths["sentence"]] * spec.masked,
  }
  return shapes.choose(
    {group: np.array([of_group[group]]) for group in spec.texts()},
    {group: max(of_group[group]) for group in spec.texts()},
    chunk=config.batch.chunk,
    devices=devices,
    most=config.batch.buckets,
  )


def lower(
  config: ml_collections.ConfigDict,
  shape: config_lib.EncoderConfig,
  mesh: jax.sharding.Mesh,
  plan: shapes.Plan,
  store: tokens.TokenStore | None = None,
) -> jax.stages.Lowered:
  """The train step that a run with this config takes, to be compiled.

  Args:
    config: The run's.
    shape: From `encoder_config`.
    mesh: The devices, real or not.
    plan: The shapes of a batch.
    store: The run's data, where they are at hand.
  """
  schedule, optimizer = build.make_optimizer(config)
  abstract = jax.eval_shape(
    lambda params: step.init_state(params, optimizer),
    encoder.abstract_params(
      shape, config.model.towers, bool(config.batch.masked)
    ),
  )
  shardings = sharding.state_shardings(abstract, mesh, config.mesh.fsdp)
  encoding = store.contract if store else contract(config)
  train_step = build.jit_step(
    config, encoding, schedule, optimizer, mesh, shardings, shape
  )
  batch = compiling.abstract_batch(
    build.batch_spec(config),
    plan,
    mesh,
    positives=store.max_positives if store else 1,
    max_targets=lambda length: masking.max_targets(
      config.data.masking.rate, length
    ),
  )
  return train_step.lower(checkpoint.abstract(abstract, shardings), batch)


def vary(
  config: ml_collections.ConfigDict, batch: int, chunk: int, how: str
) -> ml_collections.ConfigDict:
  """The config with other sizes.

  Args:
    config: The run's.
    batch: Rows of its first stream; the others keep their proportion to it.
    chunk: batch.chunk.
    how: One of `SHARDINGS`.

  Raises:
    ValueError: if a stream would have a part of a row.
  """
  varied = ml_collections.ConfigDict(config.to_dict())
  first = first_stream(config)
  for stream in batch_lib.STREAMS:
    size, rest = divmod(config.batch[stream] * batch, config.batch[first])
    if rest:
      raise ValueError(
        f"batch.{first}={batch} would give batch.{stream} a part of a row."
      )
    varied.batch[stream] = size
  varied.batch.chunk = chunk
  varied.mesh.fsdp = how == "fsdp"
  return varied


def first_stream(config: ml_collections.ConfigDict) -> str:
  """The stream by whose rows a batch is named: retrieval, if it has that."""
  return next(name for name in batch_lib.STREAMS if config.batch[name])


def make_row(
  config: ml_collections.ConfigDict,
  shape: config_lib.EncoderConfig,
  mesh: jax.sharding.Mesh,
  chip: chips.Chip,
  axes: Sequence[int],
  store: tokens.TokenStore | None = None,
) -> Row:
  """Compiles a step and reads what it costs.

  Args:
    config: From `vary`.
    shape: From `encoder_config`.
    mesh: From `make_mesh`, like the next two.
    chip: The generation of chips.
    axes: The slice's shape.
    store: Whose texts' lengths are taken; else all are as long as they may be.

  Returns:
    The row; with a problem if the step is refused or does not fit.
  """
  texts = build.batch_spec(config).texts()
  row = Row(
    batch=config.batch[first_stream(config)],
    texts=sum(texts.values()),
    chunk=config.batch.chunk,
    chunks=1,
    sharding="fsdp" if config.mesh.fsdp else "replicated",
  )
  started = time.perf_counter()
  try:
    build.check_settings(config)
    build.check_mesh(config, mesh)
    if store:
      plan = build.make_plans(config, store, mesh)[0]
    else:
      plan = full_plan(config, mesh.shape[sharding.DATA])
    row.chunks = _chunks(plan, config.batch.chunk, mesh.shape[sharding.DATA])
    program = lower(config, shape, mesh, plan, store).compile()
    row.compile_seconds = time.perf_counter() - started
    row.memory = compiled.memory(program)
    text = program.as_text()
    assert text is not None  # XLA writes it for each of its platforms.
    _bound(
      row,
      text,
      compiling.step_flops(config, shape, plan),
      chip,
      axes,
      mesh.shape[sharding.DATA],
      config.train.steps,
    )
  except ValueError as error:
    return dataclasses.replace(row, problem=str(error))
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return dataclasses.replace(
      row,
      problem=out_of_memory(str(error)),
      compile_seconds=time.perf_counter() - started,
    )
  return row


def _bound(
  row: Row,
  text: str,
  counted: flops.Flops,
  chip: chips.Chip,
  axes: Sequence[int],
  parts: int,
  steps: int,
) -> None:
  """Fills in what follows from the compiled text and the counted operations.

  A batch is split into `parts`; if there are more chips, they repeat work.
  """
  count = chips.count(axes)
  found = compiled.collectives(text)
  sent = sum(c.runs * c.sent_bytes for c in found)
  row.collectives = _by_kind_and_loops(found)
  row.traffic = compiled.memory_traffic(text)
  row.model_flops = counted.model / count
  row.flops = counted.hardware / parts
  passes = counted.hardware + (_PASSES - 1) * counted.scores
  row.seconds = {
    "compute": passes / parts / chip.flops,
    "HBM": row.traffic / chip.bandwidth,
    "ICI": sent / chip.sends(axes) if sent else 0.0,
  }
  slowest = row.seconds[row.binds]
  row.mfu = row.model_flops / chip.flops / slowest
  row.texts_per_second = row.texts / slowest
  row.chip_hours = slowest * steps * count / 3600


def _chunks(plan: shapes.Plan, chunk: int, devices: int) -> int:
  """In how many parts a batch is encoded, one after the other."""
  if not chunk:
    return 1
  return sum(
    chunking.parts(bucket.rows // devices, chunk // devices)
    for chosen in plan.values()
    for bucket in chosen
  )


def out_of_memory(message: str) -> str:
  """By how much a step does not fit, in the compiler's numbers.

  Args:
    message: Of its error.
  """
  size = r"([\d.]+)([KMGT])"
  for form in (
    rf"Used {size} of {size} hbm",
    rf"\({size}\) exceeds available HBM \({size}\)",
  ):
    if found := re.search(form, message):
      numbers = found.groups()
      used, there = (
        float(value) * _UNITS[unit] / 2**30
        for value, unit in zip(numbers[::2], numbers[1::2], strict=True)
      )
      return (
        f"does not fit: {used:.2f} GiB of {there:.2f}, {used - there:.2f} too"
        " many"
      )
  return f"does not fit: {message.splitlines()[0]}"


def _by_kind_and_loops(
  found: Sequence[compiled.Collective],
) -> list[dict[str, Any]]:
  together = {}
  for collective in found:
    key = collective.kind, collective.loops
    runs, sent = together.get(key, (0, 0))
    together[key] = (
      runs + collective.runs,
      sent + collective.runs * collective.sent_bytes,
    )
  return [
    {"kind": kind, "loops": loops, "runs": runs, "sent_bytes": sent}
    for (kind, loops), (runs, sent) in sorted(together.items())
  ]


def open_store(folder: str) -> tokens.TokenStore:
  """The token store of a run that was prepared."""
  folder = workdir.absolute(folder)
  local = workdir.local_copy(folder)
  preparation.fetch_prepared(folder, local)
  return tokens.TokenStore.open(pathlib.Path(local) / workdir.TOKEN_STORE)


def rows(
  config: ml_collections.ConfigDict,
  topology: str,
  *,
  batches: Sequence[int],
  chunks: Sequence[int],
  shardings: Sequence[str],
  encoder_file: str = "",
  store: tokens.TokenStore | None = None,
  each: Callable[[Sequence], Iterable] = lambda settings: settings,
  say: Callable[[str], None] = print,
) -> Iterator[Row]:
  """Compiles a step for each of some settings, one after the other.

  Args:
    config: The run's.
    topology: E.g. "v5e:16x16".
    batches: As in `vary`, like the next two; each with each.
    chunks: Values of batch.chunk.
    shardings: Of `SHARDINGS`.
    encoder_file: As in `encoder_config`.
    store: As in `make_row`.
    each: Goes through the settings: the place for a progress bar.
    say: Where each row is told.
  """
  if unknown := set(shardings) - set(SHARDINGS):
    raise ValueError(f"--sharding={unknown.pop()}: use {SHARDINGS}.")
  shape = encoder_config(config, encoder_file)
  start.check_lengths(shape, store.contract if store else contract(config))
  chip, axes, mesh = make_mesh(config, topology)  # It takes seconds.
  # All before the first is compiled: a batch may be refused.
  settings = [
    vary(config, batch, chunk, how)
    for how in shardings
    for batch in batches
    for chunk in chunks
  ]
  for varied in each(settings):
    row = make_row(varied, shape, mesh, chip, axes, store)
    say(describe(row, chip))
    yield row


# --- In words. ---


def _gib(size: float) -> str:
  return f"{size / 2**30:,.2f} GiB"


def describe(row: Row, chip: chips.Chip) -> str:
  """A step's costs on one chip, in a few lines."""
  title = (
    f"Batch {row.batch:,} ({row.texts:,} texts), "
    + (f"in {row.chunks:,} chunks of {row.chunk:,}" if row.chunk else "at once")
    + f", {row.sharding}"
  )
  if row.problem:
    return f"{title}: {row.problem}."
  parts = ", ".join(f"{name} {_gib(size)}" for name, size in row.memory.items())
  lines = [
    f"{title}; compiled in {row.compile_seconds:.0f} s. Of each chip:",
    f"  memory: {parts}, of {_gib(chip.memory)}",
    f"  operations: {row.flops / 1e12:,.2f} T, of which MFU counts"
    f" {row.model_flops / 1e12:,.2f} T",
    f"  to and from HBM: {row.traffic / 1e9:,.2f} GB or more",
  ]
  for found in row.collectives:
    turns = " x ".join(f"{turns:,}" for turns in found["loops"])
    where = f" in a loop of {turns} turns" if turns else ""
    lines.append(
      f"  {found['kind']}: {found['runs']:,}{where},"
      f" {found['sent_bytes'] / 1e6:,.2f} MB sent"
    )
  bounds = ", ".join(
    f"{name} {seconds * 1e3:,.2f} ms" for name, seconds in row.seconds.items()
  )
  lines.append(
    f"  at full rate: {bounds}; {row.binds} binds: MFU {row.mfu:.0%} at most"
  )
  return "\n".join(lines)


def table(made: Sequence[Row], chip: chips.Chip) -> str:
  """All rows as a Markdown table."""
  columns = (
    *("batch", "chunk", "chunks", "sharding"),
    f"GiB of {chip.memory / 2**30:.0f}",
    *("compute ms", "HBM ms", "ICI ms", "binds"),
    *("MFU <=", "texts/s <=", "chip-hours >="),
  )
  lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
  for row in made:
    cells = [
      f"{row.batch:,}",
      f"{row.chunk:,}" if row.chunk else "all",
      f"{row.chunks:,}",
      row.sharding,
    ]
    if row.problem:
      cells += [row.problem, *[""] * (len(columns) - 5)]
    else:
      cells += [
        f"{row.memory['total'] / 2**30:.2f}",
        *(f"{seconds * 1e3:,.1f}" for seconds in row.seconds.values()),
        row.binds,
        f"{row.mfu:.0%}",
        f"{row.texts_per_second:,.0f}",
        f"{row.chip_hours:,.1f}",
      ]
    lines.append(" | ".join(cells))
  return "\n".join(f"| {line} |" for line in lines)
