"""Trains a retriever, or continues a run that stopped.

python -m mlir_jax.train --config=quickstart --workdir=W

The same command continues a run from its last checkpoint. --from_step=N goes
back to the checkpoint of step N; from there on, optim.*, model.dtype and
train.steps may change.
"""

from absl import flags

from mlir_jax.command_line import process_flags, program, shared_flags
from mlir_jax.training import stopping


def main():
  """Trains as the flags say."""
  with stopping.StopSignal() as stop:
    process_flags.join(_CONFIG.value)
    from mlir_jax.training import run

    run.train(
      _CONFIG.value,
      _WORKDIR.value,
      _PROFILE.value,
      from_step=_FROM_STEP.value,
      stop=stop,
    )


if __name__ == "__main__":
  _CONFIG = shared_flags.define_config()
  _WORKDIR = shared_flags.define_workdir()
  process_flags.define()
  _PROFILE = flags.DEFINE_bool(
    "profile", False, "Writes a trace of some steps to WORKDIR/profile."
  )
  _FROM_STEP = flags.DEFINE_integer(
    "from_step",
    None,
    "Goes back to the checkpoint of this step and removes later ones. From"
    " there on, optim.*, model.dtype and train.steps may change.",
  )
  program.start(main, required=("config", "workdir"))
