"""Plans a run for TPUs that one need not have: memory, collectives, bounds.

python -m mlir_jax.plan --config=xlmr_base --topology=v5e:16x16 --chunk=0,4096

It compiles the exact train step for each --batch, --chunk and --sharding. It
reads no data or weights and needs no TPU, but libtpu: pip install
mlir_jax[tpu]. A row of a large model takes minutes, and some 15 GB of memory.
"""

import dataclasses
import json
import os

from absl import flags

from mlir_jax import command_line, shared_flags
from mlir_jax.storage import locations, writing


def main():
  """Plans by the flags."""
  import jax
  import tqdm

  # Compiling for a TPU needs none, and must not look for one.
  jax.config.update("jax_platforms", "cpu")

  from mlir_jax import bars
  from mlir_jax.planner import chips, rows, table
  from mlir_jax.training import checks

  config = _CONFIG.value
  checks.check_settings(config)
  if not _SHARDING.value:
    raise ValueError("--sharding is empty: give replicated, fsdp or both.")
  if _OUTPUT.value:
    output = locations.absolute(_OUTPUT.value)
    if os.path.isdir(output):
      raise ValueError(f"--output={output} is a folder: name a file.")
    locations.check_output(os.path.dirname(output), f"--output={output}")
  chip, axes = chips.parse(_TOPOLOGY.value)
  made = []
  described = {
    "topology": _TOPOLOGY.value,
    "chips": chips.count(axes),
    "chip": dataclasses.asdict(chip),
    "config": config.to_dict(),
    "rows": [],
  }
  for row in rows.make_rows(
    config,
    _TOPOLOGY.value,
    batches=_integers(_BATCH, least=1)
    or [config.batch[rows.first_stream(config)]],
    chunks=_integers(_CHUNK, least=0) or [config.batch.chunk],
    shardings=_SHARDING.value,
    encoder_file=_ENCODER.value or "",
    store=rows.open_store(_WORKDIR.value) if _WORKDIR.value else None,
    each=lambda settings: bars.bar(
      settings, "compiling", unit="step", leave=False
    ),
  ):
    tqdm.tqdm.write(table.describe(row, chip))
    made.append(row)
    described["rows"].append(dataclasses.asdict(row))
    if _OUTPUT.value:  # After each: the next one may take long.
      writing.write_aside(_OUTPUT.value, json.dumps(described, indent=2) + "\n")
  print(
    f"\n{chips.count(axes):,} chips, {_TOPOLOGY.value}; bounds by their"
    f" makers' rates, {config.train.steps:,} steps:\n"
  )
  print(table.to_markdown(made, chip))


def _integers(flag: flags.FlagHolder, least: int) -> list[int]:
  try:
    numbers = [int(value) for value in flag.value]
    if any(number < least for number in numbers):
      raise ValueError(f"{min(numbers)} is too small.")
  except ValueError as error:
    raise ValueError(
      f"--{flag.name}={','.join(flag.value)}: give integers from {least}, as"
      " 1024,4096."
    ) from error
  return numbers


if __name__ == "__main__":
  _CONFIG = shared_flags.define_config()
  _TOPOLOGY: flags.FlagHolder = flags.DEFINE_string(
    "topology", None, "Chips and the shape of their slice: v5e:16x16."
  )
  _BATCH = flags.DEFINE_list(
    "batch", [], "Values of batch.retrieval; the other streams in proportion."
  )
  _CHUNK = flags.DEFINE_list("chunk", [], "Values of batch.chunk.")
  _SHARDING = flags.DEFINE_list(
    "sharding",
    ["replicated", "fsdp"],
    "How parameters and optimizer state lie: mesh.fsdp.",
  )
  _ENCODER = shared_flags.define_path(
    "encoder", "A config.json, where model.pretrained is not at hand."
  )
  _WORKDIR = shared_flags.define_path(
    "workdir", "A prepared run's folder, for the lengths of its texts."
  )
  _OUTPUT = shared_flags.define_path("output", "A JSON file for all numbers.")
  command_line.start(main, required=("config", "topology"))
