"""The rows of a plan: the costs of one compiled step each."""

import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections

from mlir_jax import contract as contract_lib
from mlir_jax import sharding
from mlir_jax.batches import batch as batch_lib
from mlir_jax.batches import packing, row_plans
from mlir_jax.costs import collectives, flops, memory, traffic
from mlir_jax.data import preparation, prepared_copies, token_store
from mlir_jax.models import architecture
from mlir_jax.planner import backbones, chips, lowering
from mlir_jax.retrieval import encoding
from mlir_jax.storage import copies, locations
from mlir_jax.training import (
  build,
  checks,
  chunking,
  compiled_step,
)

SHARDINGS = ("replicated", "fsdp")

# Passes of a bfloat16 matrix unit for a float32 product with precision=HIGHEST.
_PASSES = 6

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass
class Row:
  """A compiled step on a slice; bytes, operations and times are of one chip.

  Attributes:
    batch: batch.retrieval, or the first stream that there is.
    texts: Mean number of texts that a step encodes.
    tokens: Mean number of their tokens.
    blocks: Group to the [rows, length] of its blocks, over all chips.
    padding: The share of padding in the tokens of these rows.
    chunk: batch.chunk_rows.
    chunks: In how many parts they are encoded; 1 for at once.
    sharding: "replicated" or "fsdp".
    compile_seconds: How long compiling took.
    problem: Why the step cannot run; "" if it can.
    memory: From `memory.of_program`.
    model_flops: The operations that MFU counts.
    flops: All operations, including those that several chips repeat.
    traffic: Bytes to and from HBM, a lower bound.
    collectives: "kind", "loops", "runs" and "sent_bytes" for each kind and
      loop.
    seconds: Lower bounds of the step's time: "compute", "HBM" and "ICI", each
      alone at its full rate.
    mfu: Model FLOPs utilization, an upper bound.
    texts_per_second: Of all chips, an upper bound.
    chip_hours: For train.steps, a lower bound.
  """

  batch: int
  texts: float
  chunk: int
  chunks: int
  sharding: str
  tokens: float = 0.0
  blocks: Mapping[str, Sequence[tuple[int, int]]] = dataclasses.field(
    default_factory=dict
  )
  padding: float = 0.0
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
    """Name of the highest of the three bounds."""
    return max(self.seconds, key=self.seconds.__getitem__)


def vary(
  config: ml_collections.ConfigDict, batch: int, chunk: int, how: str
) -> ml_collections.ConfigDict:
  """Returns the config with other sizes.

  Args:
    config: The run's config.
    batch: Rows of its first stream; other streams keep their proportion to it.
    chunk: batch.chunk_rows.
    how: One of `SHARDINGS`.

  Raises:
    ValueError: if a stream would not have a whole number of rows.
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
  varied.batch.chunk_rows = chunk
  varied.mesh.fsdp = how == "fsdp"
  return varied


def first_stream(config: ml_collections.ConfigDict) -> str:
  """Returns the stream that `Row.batch` counts: retrieval, if it is read."""
  return next(name for name in batch_lib.STREAMS if config.batch[name])


def make_row(
  config: ml_collections.ConfigDict,
  shape: architecture.EncoderConfig,
  mesh: jax.sharding.Mesh,
  chip: chips.Chip,
  axes: Sequence[int],
  store: token_store.TokenStore | None = None,
) -> Row:
  """Compiles a step and measures its costs.

  Args:
    config: From `vary`.
    shape: From `backbones.encoder_config`.
    mesh: From `lowering.make_mesh`.
    chip: From `lowering.make_mesh`.
    axes: From `lowering.make_mesh`.
    store: Its texts give the lengths. Without it, all texts have the maximum
      length.

  Returns:
    The row; it has a problem if the step is refused or does not fit.
  """
  texts = build.batch_spec(config).texts()
  row = Row(
    batch=config.batch[first_stream(config)],
    texts=sum(texts.values()),
    chunk=config.batch.chunk_rows,
    chunks=1,
    sharding="fsdp" if config.mesh.fsdp else "replicated",
  )
  started = time.perf_counter()
  try:
    checks.check_settings(config)
    checks.check_mesh(config, mesh)
    if store:
      plans = build.make_plans(config, store, mesh)
    else:
      plans = lowering.full_plans(config, mesh)
    # The largest size of a step that is expected: it must fit in memory.
    plan = plans.plans[-2 if plans.last_resort else -1]
    plans = dataclasses.replace(
      plans, plans=(plan,), computed=sum(map(packing.tokens, plan.values()))
    )
    row.texts = sum(each.texts for each in plans.counts.values())
    row.tokens = sum(each.tokens for each in plans.counts.values())
    row.blocks = {
      group: [(block.rows, block.length) for block in blocks]
      for group, blocks in plan.items()
    }
    row.padding = plans.padding
    row.chunks = _chunks(
      plan, config.batch.chunk_rows, mesh.shape[sharding.DATA]
    )
    widths = backbones.widths(config)
    contract = store.contract if store else lowering.make_contract(config)
    program = lowering.lower(config, shape, mesh, plan, store, widths).compile()
    row.compile_seconds = time.perf_counter() - started
    row.memory = memory.of_program(program)
    text = program.as_text()
    assert text is not None  # XLA writes it for each of its platforms.
    _bound(
      row,
      text,
      compiled_step.step_flops(
        config, shape, plans, widths, contract.truncate_dim
      ),
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
  """Fills in the costs and bounds of a row.

  Args:
    row: The row.
    text: The text of the compiled step.
    counted: The step's operations.
    chip: The generation of chips.
    axes: Chips along each axis of the slice.
    parts: How many parts the batch is split into. If there are more chips, they
      repeat work.
    steps: The run's steps.
  """
  count = chips.count(axes)
  found = collectives.find(text)
  sent = sum(c.runs * c.sent_bytes for c in found)
  row.collectives = _by_kind_and_loops(found)
  row.traffic = traffic.count(text)
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


def _chunks(plan: row_plans.Plan, chunk_rows: int, devices: int) -> int:
  """Returns how many chunks of a batch are encoded one after the other."""
  if not chunk_rows:
    return 1
  return sum(
    chunking.count_parts(
      [(block.rows // devices, block.length) for block in blocks],
      chunk_rows // devices,
    )
    for blocks in plan.values()
  )


def out_of_memory(message: str) -> str:
  """Says by how much a step does not fit, from the compiler's message."""
  size = r"([\d.]+)([KMGT])"
  for form in (
    rf"Used {size} of {size} hbm",
    rf"\({size}\) exceeds available HBM \({size}\)",
  ):
    if found := re.search(form, message):
      numbers = found.groups()
      used, available = (
        float(value) * _UNITS[unit] / 2**30
        for value, unit in zip(numbers[::2], numbers[1::2], strict=True)
      )
      return (
        f"does not fit: {used:.2f} GiB of {available:.2f},"
        f" {used - available:.2f} too many"
      )
  return f"does not fit: {message.splitlines()[0]}"


def _by_kind_and_loops(
  found: Sequence[collectives.Collective],
) -> list[dict[str, Any]]:
  """Adds up the collectives of each kind in the same loops."""
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
  """Opens the token store of a prepared run, for the lengths of its texts."""
  folder = locations.absolute(folder)
  store = prepared_copies.open_store(folder, copies.local_copy(folder))
  if not store:
    raise FileNotFoundError(
      f"There is no token store in {folder}: prepare it first"
      " (mlir_jax.prepare)."
    )
  return store


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
  """Compiles a step for all combinations of settings, one after the other.

  Args:
    config: The run's config.
    topology: A slice, such as "v5e:16x16".
    batches: Values of `vary`'s batch.
    chunks: Values of batch.chunk_rows.
    shardings: Some of `SHARDINGS`.
    encoder_file: As in `backbones.encoder_config`.
    store: As in `make_row`.
    each: Iterates over the settings, for example with a progress bar.

  Raises:
    ValueError: if the slice, the encoder or a setting cannot be used, or the
      config says of an encoding field what the store does not.
  """
  if unknown := set(shardings) - set(SHARDINGS):
    raise ValueError(f"--sharding={unknown.pop()}: use {SHARDINGS}.")
  shape = backbones.encoder_config(config, encoder_file)
  contract = lowering.make_contract(config)
  if store:
    contract = store.contract
    contract_lib.check_same(
      preparation.resolve_encoding(config, None, contract),
      contract.partial(),
      str(store.path),
    )
  encoding.check_lengths(shape, contract)
  backbones.widths(config)  # It refuses a guide that it does not know.
  chip, axes, mesh = lowering.make_mesh(config, topology)  # It takes seconds.
  # Before the first step is compiled, because `vary` may refuse a batch.
  settings = [
    vary(config, batch, chunk, how)
    for how in shardings
    for batch in batches
    for chunk in chunks
  ]
  for varied in each(settings):
    yield make_row(varied, shape, mesh, chip, axes, store)
