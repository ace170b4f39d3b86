"""Trains a retriever, or goes on where a run stopped.

python -m mlir_jax.train --config=quickstart --workdir=W
"""

from absl import flags

from mlir_jax import command_line


def main():
  """Trains by the flags."""
  command_line.join_processes(_CONFIG.value)
  from mlir_jax.training import run

  run.train(_CONFIG.value, _WORKDIR.value, _PROFILE.value)


if __name__ == "__main__":
  _CONFIG = command_line.define_config()
  _WORKDIR = command_line.define_workdir()
  command_line.define_processes()
  _PROFILE = flags.DEFINE_bool(
    "profile", False, "Writes a trace of some steps to WORKDIR/profile."
  )
  command_line.run(main, required=("config", "workdir"))
