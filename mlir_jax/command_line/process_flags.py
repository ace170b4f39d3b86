"""The flags of a program that several processes run together."""

import contextlib
import sys
import traceback
from collections.abc import Iterator

import ml_collections
from absl import flags

from mlir_jax import config as config_lib
from mlir_jax import extensions
from mlir_jax.command_line import refusal

# --help shows a flag as one of the program that calls `define`.
flags.disclaim_key_flags()

# These flags may differ between the processes.
_OWN = ("coordinator", "processes", "process", "coordinator_bind_address")


def define() -> None:
  """Defines --distributed and the flags that need it."""
  flags.DEFINE_bool(
    "distributed",
    False,
    "Whether this is one of several processes of one run. The cluster (TPU"
    " pods, SLURM, ...) knows the others, unless --coordinator, --processes"
    " and --process are given.",
  )
  flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0; the port must be free."
  )
  flags.DEFINE_integer("processes", None, "The number of processes.")
  flags.DEFINE_integer("process", None, "The number of this process, from 0.")
  flags.DEFINE_string(
    "coordinator_bind_address",
    None,
    "The address at which process 0 listens, if it is not that of"
    " --coordinator (behind a translated address, or if the name is 127.0.1.1"
    " on its own machine).",
  )
  flags.DEFINE_bool(
    "insecure_check_in",
    False,
    "Whether processes of several machines need no secret. Without this flag"
    " all of them need the same secret in MLIR_JAX_SECRET, or in a file of mode"
    " 600 that MLIR_JAX_SECRET_FILE names; the launchers make one.",
  )


def join(config: ml_collections.ConfigDict | None = None) -> None:
  """Joins the run's other processes if --distributed is set.

  Args:
    config: The run's config, None for a program without one. Config, other
      flags and code must be the same in all processes.

  Raises:
    ValueError: if a flag is missing or wrong, or the processes differ.
    multihost.LostError: if a process does not come in time.
  """
  values = flags.FLAGS
  if not values.distributed:
    for name in (*_OWN, "insecure_check_in"):
      if values[name].present:
        raise ValueError(f"--{name} is given without --distributed.")
    return
  from mlir_jax import workdir
  from mlir_jax.hosts import multihost
  from mlir_jax.training import provenance

  fields = {
    f"--{name}": str(values[name].value)
    for name in values
    if values[name].present
    and name not in _OWN
    and name.partition(".")[0] != "config"
  }
  named = [values.collection] if "collection" in values else []
  for flag in {"evaluator", "protocol", "system"}.intersection(values):
    given = values[flag].value or ()
    named += [value.partition("=")[2] for value in given]
  if config:
    fields["config"] = settings = config.to_dict()
    named += extensions.named_by(settings)
  else:
    config = config_lib.default()
  if values.coordinator and "/" in values.coordinator:
    raise ValueError(f"--coordinator={values.coordinator}: give HOST:PORT.")
  multihost.join(
    values.coordinator,
    values.processes,
    values.process,
    check_in_seconds=config.hosts.check_in_seconds,
    silent_seconds=config.hosts.silent_seconds,
    items={
      **workdir.flatten(fields),
      **provenance.code(),
      **{
        f"SHA-256 of {module}": digest
        for module, digest in extensions.fingerprints(*named).items()
      },
    },
    insecure=values.insecure_check_in,
    bind=values.coordinator_bind_address,
  )


@contextlib.contextmanager
def together() -> Iterator[None]:
  """If this process ends within this context, the run's other processes end."""
  if not getattr(flags.FLAGS, "distributed", False):
    yield
    return
  from mlir_jax.hosts import multihost

  try:
    yield
  except multihost.LostError as error:
    print(f"{refusal.program()}: {error}", file=sys.stderr)
    multihost.fail(multihost.EXIT_LOST, str(error))
    sys.exit(multihost.EXIT_LOST)
  except SystemExit as error:
    if not getattr(error, "together", False):
      # A code that is a text is printed, and the status is 1.
      code = error.code if isinstance(error.code, int | None) else 1
      multihost.fail(code or 0, _reason(error))
    multihost.leave()
    raise
  except BaseException as error:
    # The death of another process causes many kinds of errors in this one.
    multihost.await_verdict()
    traceback.print_exc()
    multihost.fail(1, f"{type(error).__name__}: {error}")
    raise
  multihost.leave()


def _reason(error: SystemExit) -> str:
  """Returns why a process ends: the error that it refused with, or SIGTERM."""
  cause = error.__context__
  return str(cause) if cause else "it was asked to stop"
