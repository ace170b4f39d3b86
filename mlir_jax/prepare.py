"""Prepares a run's data: tokenizer, encoding contract and token store.

python -m mlir_jax.prepare --config=quickstart --workdir=W

Training does this, too, if it is not done before. A killed run goes on where it
was, in shards (see data.shards).
"""

import functools

from absl import flags

from mlir_jax import lock
from mlir_jax.command_line import program, shared_flags
from mlir_jax.storage import locations


def main():
  """Prepares the data as the flags say."""
  from mlir_jax.batches import drawing
  from mlir_jax.data import language_table, preparation, source_settings
  from mlir_jax.data.shards import beam_runner
  from mlir_jax.evals import overlap, ranking
  from mlir_jax.training import checks, stopping

  config, folder = _CONFIG.value, locations.absolute(_WORKDIR.value)
  beam = _BEAM.value if _RUNNER.value == "beam" else None
  if beam is not None:
    beam_runner.check_installed()
  checks.check_settings(config)
  locations.check_packages(folder)
  with stopping.StopSignal(), lock.hold(folder):
    prepared = preparation.prepare(
      config,
      folder,
      functools.partial(checks.check_fits, config, folder),
      processes=_WORKERS.value,
      beam=beam,
    )
  sources = source_settings.find(config.data.sources.to_dict())
  shared = {}
  try:
    shared = overlap.count_shared_texts(
      source_settings.trained_on(prepared.collection, sources),
      prepared.tests,
      prepared.contract,
      drawing.streams_read(config.batch.to_dict()),
    )
  except ValueError as error:  # The files may be gone.
    print(f"Texts shared with training are not counted: {error}")
  left_out = source_settings.left_out(sources)
  print(language_table.render(prepared.store, shared, left_out))
  # A training run prints these lines above its report.
  for line in ranking.describe_unfindable(prepared.tests):
    print(line)


if __name__ == "__main__":
  _CONFIG = shared_flags.define_config()
  _WORKDIR = shared_flags.define_workdir()
  _WORKERS = flags.DEFINE_integer(
    "workers",
    0,
    "Processes that read and tokenize; 0 for one on each core. The data are the"
    " same for any number.",
    lower_bound=0,
  )
  _RUNNER = flags.DEFINE_enum(
    "runner",
    "local",
    ["local", "beam"],
    "Who reads and tokenizes: the processes of this machine, or Apache Beam"
    " (the extra beam). The data are the same.",
  )
  _BEAM = flags.DEFINE_string(
    "beam",
    "",
    "Beam's own flags in one text, such as '--runner=FlinkRunner"
    " --flink_master=HOST:8081'.",
  )
  program.start(main, required=("config", "workdir"))
