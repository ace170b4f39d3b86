"""The command line that all mains share: parsing, and errors that help."""

import signal
import sys
import traceback
from collections.abc import Callable, Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from mlir_jax import config


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


def parse(argv: Sequence[str]) -> list[str]:
  """Parses flags; a field or name that does not exist ends the program."""
  try:
    return app.parse_flags_with_usage(config.resolve_arguments(argv))
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
    try:
      main(files) if takes_files else main()
    except (ValueError, OSError, ImportError, ArithmeticError) as error:
      of_file = isinstance(error, OSError) and error.filename is not None
      if not of_file and not _is_ours(error):
        raise
      _refuse(str(error))

  app.run(call, flags_parser=parse)


def _is_ours(error: BaseException) -> bool:
  """Whether this package raised it: then its message says what to do."""
  *_, (frame, _) = traceback.walk_tb(error.__traceback__)
  # The package, since a main's own __name__ is "__main__".
  package = frame.f_globals.get("__package__") or ""
  return package.split(".")[0] == "mlir_jax"


def _refuse(message: str) -> None:
  print(f"{sys.argv[0]}: {message}", file=sys.stderr)
  sys.exit(2)
