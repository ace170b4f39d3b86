"""Prepares a run's data: tokenizer, encoding contract and token store.

python -m mlir_jax.prepare --config=quickstart --workdir=W

Training does this by itself; prepared ahead, it need not.
"""

import functools

from mlir_jax import command_line, lock, workdir


def main():
  """Prepares by the flags."""
  from mlir_jax.data import preparation
  from mlir_jax.evals import ranking
  from mlir_jax.training import build, start, stopping

  config, folder = _CONFIG.value, workdir.absolute(_WORKDIR.value)
  build.check_settings(config)
  workdir.check_packages(folder)
  with stopping.StopSignal(), lock.hold(folder):
    prepared = preparation.prepare(
      config, folder, functools.partial(start.check_fits, config, folder)
    )
  # Training prints them above its report.
  for line in ranking.describe_unfindable(prepared.tests):
    print(line)


if __name__ == "__main__":
  _CONFIG = command_line.define_config()
  _WORKDIR = command_line.define_workdir()
  command_line.run(main, required=("config", "workdir"))
