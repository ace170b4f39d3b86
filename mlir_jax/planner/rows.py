"""The exact train step, compiled for TPUs that one need not have.

libtpu compiles for a slice by its name. What comes out is what a run there
would start with: its memory, its collectives, its kernels. Times are bounds,
not forecasts: each part at the rate that its maker's table gives, all of them
at once.
"""

import dataclasses
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections

from mlir_jax import sharding, workdir
from mlir_jax.batches import batch as batch_lib
from mlir_jax.batches import shapes
from mlir_jax.costs import collectives, flops, memory
from mlir_jax.data import preparation, token_store
from mlir_jax.models import architecture
from mlir_jax.planner import backbones, chips, lowering
from mlir_jax.storage import copies, locations
from mlir_jax.training import (
  build,
  checks,
  chunking,
  compiled_step,
  initial_state,
)

SHARDINGS = ("replicated", "fsdp")

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
    memory: As `memory.of_program` gives it.
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
  shape: architecture.EncoderConfig,
  mesh: jax.sharding.Mesh,
  chip: chips.Chip,
  axes: Sequence[int],
  store: token_store.TokenStore | None = None,
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
    checks.check_settings(config)
    checks.check_mesh(config, mesh)
    if store:
      plan = build.make_plans(config, store, mesh)[0]
    else:
      plan = lowering.full_plan(config, mesh.shape[sharding.DATA])
    row.chunks = _chunks(plan, config.batch.chunk, mesh.shape[sharding.DATA])
    program = lowering.lower(config, shape, mesh, plan, store).compile()
    row.compile_seconds = time.perf_counter() - started
    row.memory = memory.of_program(program)
    text = program.as_text()
    assert text is not None  # XLA writes it for each of its platforms.
    _bound(
      row,
      text,
      compiled_step.step_flops(config, shape, plan),
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
  found = collectives.find(text)
  sent = sum(c.runs * c.sent_bytes for c in found)
  row.collectives = _by_kind_and_loops(found)
  row.traffic = memory.traffic(text)
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
  found: Sequence[collectives.Collective],
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


def open_store(folder: str) -> token_store.TokenStore:
  """The token store of a run that was prepared."""
  folder = locations.absolute(folder)
  local = copies.local_copy(folder)
  preparation.fetch_prepared(folder, local)
  return token_store.TokenStore.open(pathlib.Path(local) / workdir.TOKEN_STORE)


def make_rows(
  config: ml_collections.ConfigDict,
  topology: str,
  *,
  batches: Sequence[int],
  chunks: Sequence[int],
  shardings: Sequence[str],
  encoder_file: str = "",
  store: token_store.TokenStore | None = None,
  each: Callable[[Sequence], Iterable] = lambda settings: settings,
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
  """
  if unknown := set(shardings) - set(SHARDINGS):
    raise ValueError(f"--sharding={unknown.pop()}: use {SHARDINGS}.")
  shape = backbones.encoder_config(config, encoder_file)
  initial_state.check_lengths(
    shape, store.contract if store else lowering.make_contract(config)
  )
  chip, axes, mesh = lowering.make_mesh(config, topology)  # It takes seconds.
  # All before the first is compiled: a batch may be refused.
  settings = [
    vary(config, batch, chunk, how)
    for how in shardings
    for batch in batches
    for chunk in chunks
  ]
  for varied in each(settings):
    yield make_row(varied, shape, mesh, chip, axes, store)
