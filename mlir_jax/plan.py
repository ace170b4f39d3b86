"""Plans a run for TPUs that are not there: memory, collectives, bounds.

python -m mlir_jax.plan --config=xlmr_base --topology=v5e:16x16 --chunk=0,4096

It compiles the exact train step for each combination of --batch, --chunk and
--sharding. It needs no TPU, data or weights, but libtpu: pip install
mlir_jax[tpu]. A large model takes minutes and some 15 GB of memory per row.
"""

import dataclasses
import json
import os
import signal

from absl import flags

from mlir_jax.command_line import program, shared_flags
from mlir_jax.storage import locations, writing


def main():
  """Plans as the flags say."""
  import jax
  import tqdm

  # The compiler does not return to Python for minutes, and a handler in Python
  # would wait for it. A killed plan leaves nothing half written.
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  # Compiling for TPUs must not look for TPUs on this machine.
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
  planned = []
  content = {
    "topology": _TOPOLOGY.value,
    "chips": chips.count(axes),
    "chip": dataclasses.asdict(chip),
    "config": config.to_dict(),
    "rows": [],
  }
  for row in rows.make_rows(
    config,
    _TOPOLOGY.value,
    batches=_integers(_BATCH, minimum=1)
    or [config.batch[rows.first_stream(config)]],
    chunks=_integers(_CHUNK, minimum=0) or [config.batch.chunk_rows],
    shardings=_SHARDING.value,
    encoder_file=_ENCODER.value or "",
    store=rows.open_store(_WORKDIR.value) if _WORKDIR.value else None,
    each=lambda settings: bars.bar(
      settings, "compiling", unit="step", leave=False
    ),
  ):
    tqdm.tqdm.write(table.to_text(row, chip))
    planned.append(row)
    content["rows"].append(dataclasses.asdict(row))
    if _OUTPUT.value:  # After each row, because the next one may take long.
      writing.write_aside(_OUTPUT.value, json.dumps(content, indent=2) + "\n")
  print(
    f"\n{chips.count(axes):,} chips, {_TOPOLOGY.value}; bounds by the maker's"
    f" rates, {config.train.steps:,} steps:\n"
  )
  print(table.to_markdown(planned, chip))


def _integers(flag: flags.FlagHolder, minimum: int) -> list[int]:
  """Returns the integers that a flag lists."""
  try:
    numbers = [int(value) for value in flag.value]
    if any(number < minimum for number in numbers):
      raise ValueError(f"{min(numbers)} is too small.")
  except ValueError as error:
    raise ValueError(
      f"--{flag.name}={','.join(flag.value)}: give integers from {minimum},"
      " such as 1024,4096."
    ) from error
  return numbers


if __name__ == "__main__":
  _CONFIG = shared_flags.define_config()
  _TOPOLOGY: flags.FlagHolder = flags.DEFINE_string(
    "topology", None, "The chips and the shape of their slice: v5e:16x16."
  )
  _BATCH = flags.DEFINE_list(
    "batch", [], "Values of batch.retrieval; other streams keep the proportion."
  )
  _CHUNK = flags.DEFINE_list("chunk", [], "Values of batch.chunk_rows.")
  _SHARDING = flags.DEFINE_list(
    "sharding",
    ["replicated", "fsdp"],
    "How parameters and optimizer state are stored, see mesh.fsdp.",
  )
  _ENCODER = shared_flags.define_path(
    "encoder", "A config.json, if the shape of model.pretrained is not known."
  )
  _WORKDIR = shared_flags.define_path(
    "workdir", "The folder of a prepared run; its texts give the lengths."
  )
  _OUTPUT = shared_flags.define_path("output", "A JSON file for all numbers.")
  program.start(main, required=("config", "topology"))
