"""The command line that all mains share: parsing, and errors that help."""

import contextlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from mlir_jax import config as config_lib
from mlir_jax import config_arguments, config_files, extensions
from mlir_jax.data import records
from mlir_jax.storage import full_disk

# What is defined here belongs to the main that asks for it: --help shows it.
flags.disclaim_key_flags()


class _PathParser(flags.ArgumentParser):
  """Parses a path; an empty one comes from a variable that is not set."""

  def parse(self, argument: str) -> str:
    if not argument.strip():
      raise ValueError("the path is empty; is a shell variable not set?")
    if not argument.isprintable():
      raise ValueError(
        "the path has control characters or bytes that are not UTF-8."
      )
    path = os.path.expanduser(argument)
    if path.startswith("~") and not os.path.exists(path):
      raise ValueError(f"there is no user {path.partition('/')[0][1:]!r}.")
    if re.match(r"[A-Za-z]\w+:/", path) and not re.match("gs://[^/]", path):
      raise ValueError(
        "of URLs only gs://BUCKET/FOLDER is supported; or give a path."
      )
    return path


def define_path(name: str, help_text: str) -> flags.FlagHolder:
  """Defines a flag that is a path: not empty, "~" is the user's home.

  Args:
    name: The flag's name.
    help_text: What --help says.

  Returns:
    The flag; its value is None where it is not given.
  """
  return flags.DEFINE(
    _PathParser(), name, None, help_text, serializer=flags.ArgumentSerializer()
  )


class _ConfigParser(flags.ArgumentParser):
  """Loads a config by name or path; an error names the file and the line.

  Attributes:
    argv: The command line: it may name losses of the user.
  """

  argv: Sequence[str] = ()

  def parse(self, name: str) -> ml_collections.ConfigDict:
    try:
      config = config_files.load(name)
      config_arguments.take_targets(config, self.argv)
      config_lib.complete(config)
      config_arguments.check_names(self.argv, config)
      return config.lock()
    except ValueError as error:  # absl would put the flag before its message.
      raise flags.Error(str(error)) from error


def define_config() -> flags.FlagHolder:
  """Defines --config, a shipped config's name or a path to a file."""
  try:
    holder = config_flags.DEFINE_config_file(
      "config",
      None,
      "A shipped config's name (quickstart, quickstart:ir) or a path to a"
      " config file. Fields are set with --config.FIELD=VALUE.",
    )
  except flags.Error as error:  # It reads --flagfile at once.
    _refuse(config_files.one_line(error))
  flags.FLAGS["config"].parser = _ConfigParser()
  return holder


def define_workdir() -> flags.FlagHolder:
  """Defines --workdir, the run's folder."""
  return define_path(
    "workdir", "The run's folder: checkpoints, metrics, results."
  )


def define_processes() -> None:
  """Defines the flags of a main that several processes may run together."""
  flags.DEFINE_bool(
    "distributed",
    False,
    "Whether this is one of several processes of one run. Who the others are"
    " is asked of the cluster (TPU pods, SLURM, ...) unless --coordinator,"
    " --processes and --process say it.",
  )
  flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0; the port must be free."
  )
  flags.DEFINE_integer("processes", None, "How many processes there are.")
  flags.DEFINE_integer("process", None, "The number of this one, from 0.")
  flags.DEFINE_string(
    "coordinator_bind_address",
    None,
    "The address at which process 0 listens, where it is not the coordinator's"
    " (behind a translated address; a name that is 127.0.1.1 on its machine).",
  )
  flags.DEFINE_bool(
    "insecure_check_in",
    False,
    "Whether processes of several machines need no secret. Without this flag"
    " all of them need the same secret in MLIR_JAX_SECRET, or in a file of mode"
    " 600 that MLIR_JAX_SECRET_FILE names; the launchers make one.",
  )


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
    for name in (
      "coordinator",
      "processes",
      "process",
      "coordinator_bind_address",
      "insecure_check_in",
    ):
      if values[name].present:
        raise ValueError(f"--{name} is given without --distributed.")
    return
  from mlir_jax import workdir
  from mlir_jax.hosts import multihost
  from mlir_jax.training import provenance

  own = {"coordinator", "processes", "process", "coordinator_bind_address"}
  fields = {
    f"--{name}": str(values[name].value)
    for name in values
    if values[name].present
    and name not in own
    and name.partition(".")[0] != "config"
  }
  named = [values.collection] if "collection" in values else []
  if "evaluator" in values:
    named += [value.partition("=")[2] for value in values.evaluator]
  if config:
    fields["config"] = settings = config.to_dict()
    named += [
      settings["loss"]["extra"],
      settings["data"]["collection"],
      settings["eval"]["extra"],
    ]
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
      **extensions.fingerprints(*named),
    },
    insecure=values.insecure_check_in,
    bind=values.coordinator_bind_address,
  )


def parse(argv: Sequence[str]) -> list[str]:
  """Parses flags; what is wrong ends the program with one line.

  A config is checked, and its paths are expanded.
  """
  if not {"--help", "-help", "--helpshort", "-h", "-?"}.isdisjoint(argv[1:]):
    _print_help()
    sys.exit()
  _check_devices()  # Before a config imports jax, which reads it.
  values = flags.FLAGS
  try:
    if "config" in values:
      config_arguments.check_names(argv)
      _ConfigParser.argv = argv
    files = values(argv)
    if "config" in values and values["config"].present:
      config_lib.check(values.config)
      config_lib.expand_paths(values.config)
    return files
  except (ValueError, flags.Error) as error:
    _refuse(config_files.one_line(error).removeprefix("flag "))


def _check_devices() -> None:
  """Refuses a number of CPU devices on which importing jax would fail."""
  devices = os.environ.get("JAX_NUM_CPU_DEVICES", "1")
  if not re.fullmatch("[1-9][0-9]{0,3}", devices):
    _refuse(
      f"JAX_NUM_CPU_DEVICES={devices}: give a whole number from 1 to 9999,"
      " or unset it."
    )


def _print_help() -> None:
  """Prints what the main does, with an example, and its own flags."""
  print(sys.modules["__main__"].__doc__)
  # Its first two lines are empty and the name of a file.
  print("\nFlags:", *flags.FLAGS.main_module_help().splitlines()[2:], sep="\n")
  print("\n--helpfull shows the flags of all libraries, too.")


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
  flags.FLAGS.set_gnu_getopt()  # Flags may stand behind files.

  def call(argv):
    files = argv[1:]
    if files and not takes_files:
      _refuse(
        f"Unexpected {files[0]!r}: every argument is a flag, --name=value."
      )
    if "" in files:
      _refuse("The name of a file is empty.")
    files = [os.path.expanduser(file) for file in files]
    missing = [f"--{n}" for n in required if flags.FLAGS[n].value is None]
    if missing:
      _refuse(f"Give {' and '.join(missing)}; --help shows an example.")
    logging.set_verbosity(logging.WARNING)  # absl's mains show more.
    # As Ctrl-C does: what is written aside is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with _together():
      try:
        with full_disk.told(_refuse):
          _check_environment()
          main(files) if takes_files else main()
      except _TOLD as error:
        of_file = isinstance(error, OSError) and error.filename is not None
        if not of_file and not _is_ours(error):
          raise
        _refuse(str(error))
      except RuntimeError as error:
        if not str(error).startswith("Unable to initialize backend"):
          raise
        _refuse(f"JAX_PLATFORMS: {config_files.one_line(error)}")

  app.run(call, flags_parser=parse)


def _check_environment() -> None:
  """Refuses variables of the environment on which JAX would fail later.

  Raises:
    ValueError: naming the variable.
  """
  if cache := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    from mlir_jax.storage import locations

    # It may be a folder that can only be read.
    locations.check_folder(
      locations.absolute(cache), f"JAX_COMPILATION_CACHE_DIR={cache}"
    )


# Errors whose message says what to do, if this package raised them.
_TOLD = (ValueError, OSError, ImportError, ArithmeticError, MemoryError)


@contextlib.contextmanager
def _together():
  """Within this context, how one of several processes ends, all end."""
  if not getattr(flags.FLAGS, "distributed", False):
    yield
    return
  from mlir_jax.hosts import multihost

  try:
    yield
  except multihost.LostError as error:
    print(f"{program()}: {error}", file=sys.stderr)
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


def program() -> str:
  """The program's name, before each of its errors: "mlir-jax train"."""
  spec = sys.modules["__main__"].__spec__
  if spec and spec.parent == "mlir_jax":
    return f"mlir-jax {spec.name.rpartition('.')[2]}"
  return os.path.basename(sys.argv[0])


def _refuse(message: str) -> NoReturn:
  # Names of files may hold what a terminal would obey.
  lines = [records.printable(line) for line in message.split("\n")]
  print(f"{program()}: " + "\n".join(lines), file=sys.stderr)
  sys.exit(2)
