"""Trains a retriever, or goes on where a run stopped.

python -m mlir_jax.train --config=quickstart --workdir=W
"""

from mlir_jax import command_line


def main():
  """Trains by the flags."""
  from mlir_jax.training import run

  run.train(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
  _CONFIG = command_line.define_config()
  _WORKDIR = command_line.define_workdir()
  command_line.run(main, required=("config", "workdir"))
