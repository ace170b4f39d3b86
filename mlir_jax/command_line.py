"""The command line that all mains share: parsing, and errors that help."""

import contextlib
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from mlir_jax import config as config_lib
from mlir_jax import full_disk


def define_config() -> flags.FlagHolder:
  """Defines --config, a shipped config's name or a path to a file."""
  return config_flags.DEFINE_config_file(
    "config",
    None,
    "A shipped config's name (quickstart, quickstart:ir) or a path to a"
    " config file. Fields are set with --config.FIELD=VALUE.",
  )


def define_workdir() -> flags.FlagHolder:
  """Defines --workdir, the run's folder."""
  return flags.DEFINE_string(
    "workdir", None, "The run's folder: checkpoints, metrics, results."
  )


def define_processes() -> None:
  """Defines the flags of a main that several processes may run together."""
  flags.DEFINE_bool(
    "distributed",
    False,
    "Whether this is one of several processes of one run. Who the others are"
    " is asked of the cluster (TPU pods, SLURM, ...) unless the next three"
    " flags say it.",
  )
  flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0; the port must be free."
  )
  flags.DEFINE_integer("processes", None, "How many processes there are.")
  flags.DEFINE_integer("process", None, "The number of this one, from 0.")


def join_processes(config: ml_collections.ConfigDict | None = None) -> None:
  """Joins the run's other processes, if --distributed says so.

  Args:
    config: The run's; it must be the same in all, as the other flags must.
      None for a main that has none.

  Raises:
    ValueError: if a flag is missing or wrong, or the processes differ.
    multihost.LostError: if a process does not come in time.
  """
  values = flags.FLAGS
  if not values.distributed:
    for name in ("coordinator", "processes", "process"):
      if values[name].present:
        raise ValueError(f"--{name} is given without --distributed.")
    return
  from mlir_jax import workdir
  from mlir_jax.mesh import multihost
  from mlir_jax.training import provenance

  own = {"coordinator", "processes", "process"}
  fields = {
    f"--{name}": str(values[name].value)
    for name in values
    if values[name].present
    and name not in own
    and name.partition(".")[0] != "config"
  }
  if config:
    fields["config"] = config.to_dict()
  else:
    config = config_lib.default()
  multihost.join(
    values.coordinator,
    values.processes,
    values.process,
    check_in_seconds=config.hosts.check_in_seconds,
    silent_seconds=config.hosts.silent_seconds,
    items={
      **workdir.flatten(fields),
      **provenance.code(),
    },
  )


def parse(argv: Sequence[str]) -> list[str]:
  """Parses flags; a field or name that does not exist ends the program."""
  try:
    return app.parse_flags_with_usage(config_lib.resolve_arguments(argv))
  except AttributeError as error:
    # From ml_collections, which names the nearest field.
    message = str(error).strip("'\"").replace("\\n", " ").replace("\\'", "'")
    _refuse(f"--config has no such field: {message}")
  except ValueError as error:
    _refuse(str(error))


def run(
  main: Callable[..., object],
  required: Sequence[str],
  takes_files: bool = False,
) -> None:
  """Runs a main after parsing its flags.

  Args:
    main: Takes nothing, it reads its flags; or the list of files.
    required: Flags that must be given.
    takes_files: Whether arguments that are no flags are files.
  """
  flags.mark_flags_as_required(required)
  flags.FLAGS.set_gnu_getopt()  # Flags may stand behind files.

  def call(argv):
    files = argv[1:]
    if files and not takes_files:
      _refuse(
        f"Unexpected {files[0]!r}: every argument is a flag, --name=value."
      )
    logging.set_verbosity(logging.ERROR)  # Orbax warns of what is meant.
    # As Ctrl-C does: what is written aside is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with _together():
      try:
        with full_disk.told(_refuse):
          main(files) if takes_files else main()
      except _TOLD as error:
        of_file = isinstance(error, OSError) and error.filename is not None
        if not of_file and not _is_ours(error):
          raise
        _refuse(str(error))

  app.run(call, flags_parser=parse)


# Errors whose message says what to do, if this package raised them.
_TOLD = (ValueError, OSError, ImportError, ArithmeticError, MemoryError)


@contextlib.contextmanager
def _together():
  """Within this context, how one of several processes ends, all end."""
  if not getattr(flags.FLAGS, "distributed", False):
    yield
    return
  from mlir_jax.mesh import multihost

  try:
    yield
  except multihost.LostError as error:
    print(f"{sys.argv[0]}: {error}", file=sys.stderr)
    multihost.fail(multihost.EXIT_LOST, str(error))
    sys.exit(multihost.EXIT_LOST)
  except SystemExit as error:
    if not getattr(error, "together", False):
      multihost.fail(int(error.code or 0), _reason(error))
    multihost.leave()
    raise
  except BaseException as error:
    multihost.await_verdict()  # The death of another shows in many ways.
    traceback.print_exc()
    multihost.fail(1, f"{type(error).__name__}: {error}")
    raise
  multihost.leave()


def _reason(error: SystemExit) -> str:
  """Why a process was ended: what it refused, or SIGTERM."""
  cause = error.__context__
  return str(cause) if cause else "it was asked to stop"


def _is_ours(error: BaseException) -> bool:
  """Whether this package raised it: then its message says what to do."""
  # XLA raises ValueError, too, in the frame that called what was compiled:
  # "UNKNOWN: Gloo ...", "RESOURCE_EXHAUSTED: ...".
  if re.match("[A-Z_]+: ", str(error)):
    return False
  *_, (frame, _) = traceback.walk_tb(error.__traceback__)
  # The package, since a main's own __name__ is "__main__".
  package = frame.f_globals.get("__package__") or ""
  return package.split(".")[0] == "mlir_jax"


def _refuse(message: str) -> None:
  print(f"{sys.argv[0]}: {message}", file=sys.stderr)
  sys.exit(2)
