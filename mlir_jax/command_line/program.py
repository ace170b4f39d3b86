"""Starts a program: it parses the flags, and refuses in one line."""

import functools
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TextIO

from absl import app, flags, logging

from mlir_jax import config_files
from mlir_jax.command_line import (
  allocator,
  pipes,
  process_flags,
  refusal,
  shared_flags,
)
from mlir_jax.storage import full_disk


def start(
  main: Callable[..., object],
  required: Sequence[str],
  takes_files: bool = False,
  takes_texts: bool = False,
  expand: Callable[[list[str]], list[str]] = list,
) -> None:
  """Parses the flags of a program and calls its main function.

  Args:
    main: Takes nothing and reads its flags; or takes the list of arguments
      that are not flags.
    required: Flags that must be given.
    takes_files: Whether these arguments are files.
    takes_texts: Whether they are texts.
    expand: Returns the arguments to parse in place of those that are given. It
      may raise ValueError.
  """
  allocator.keep_freed_memory()  # Before jax is imported.
  flags.FLAGS.set_gnu_getopt()  # A flag may come after a file.

  def call(argv):
    others = argv[1:]
    if others and not (takes_files or takes_texts):
      refusal.refuse(
        f"Unexpected {others[0]!r}: every argument is a flag, --name=value."
      )
    if takes_files:
      if "" in others:
        refusal.refuse("The name of a file is empty.")
      others = [os.path.expanduser(file) for file in others]
    missing = [f"--{n}" for n in required if flags.FLAGS[n].value is None]
    if missing:
      refusal.refuse(f"Give {' and '.join(missing)}; --help shows an example.")
    logging.set_verbosity(logging.WARNING)  # absl would also show INFO.
    warnings.showwarning = _show_warning
    # SIGTERM raises, as Ctrl-C does, so that temporary files are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with process_flags.together():
      try:
        with full_disk.reported_once(refusal.refuse):
          _check_environment()
          main(others) if takes_files or takes_texts else main()
      except Exception as error:
        if isinstance(error, BrokenPipeError) and pipes.left():
          raise
        if refusal.is_for_user(error):
          refusal.refuse(str(error))
        if _is_unknown_platform(error):
          refusal.refuse(f"JAX_PLATFORMS: {config_files.one_line(error)}")
        raise

  with pipes.may_be_left():
    app.run(call, flags_parser=functools.partial(_parse, expand))


def _parse(
  expand: Callable[[list[str]], list[str]], argv: Sequence[str]
) -> list[str]:
  """Parses the flags; a wrong flag ends the program with one line."""
  if not {"--help", "-help", "--helpshort", "-h", "-?"}.isdisjoint(argv[1:]):
    _print_help()
    sys.exit()
  _check_devices()  # Loading a config imports jax, which reads the variable.
  try:
    sys.argv[1:] = expand(list(argv[1:]))  # ml_collections reads it, too.
    return shared_flags.parse([argv[0], *sys.argv[1:]])
  except (ValueError, flags.Error) as error:
    refusal.refuse(config_files.one_line(error).removeprefix("flag "))


def _show_warning(
  message: Warning | str,
  category: type[Warning],
  filename: str,
  lineno: int,
  file: TextIO | None = None,
  line: str | None = None,
) -> None:
  """Prints a warning; one of this package's own categories in one line."""
  if category.__module__.split(".")[0] == "mlir_jax":
    print(f"{refusal.program()}: {message}", file=sys.stderr)
    return
  text = warnings.formatwarning(message, category, filename, lineno, line)
  print(text, end="", file=file or sys.stderr)


def _check_devices() -> None:
  """Refuses a number of CPU devices with which importing jax would fail."""
  devices = os.environ.get("JAX_NUM_CPU_DEVICES", "1")
  if not re.fullmatch("[1-9][0-9]{0,3}", devices):
    refusal.refuse(
      f"JAX_NUM_CPU_DEVICES={devices}: give a whole number from 1 to 9999,"
      " or unset it."
    )


def _print_help() -> None:
  """Prints what the program does, with an example, and its own flags."""
  print(sys.modules["__main__"].__doc__)
  # The first two lines of absl's help are empty and the name of a file.
  print("\nFlags:", *flags.FLAGS.main_module_help().splitlines()[2:], sep="\n")
  print("\n--helpfull shows the flags of all libraries, too.")


def _check_environment() -> None:
  """Refuses environment variables with which JAX would fail later.

  Raises:
    ValueError: naming the variable.
  """
  if cache := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    from mlir_jax.storage import locations

    # The folder may be read-only.
    locations.check_folder(
      locations.absolute(cache), f"JAX_COMPILATION_CACHE_DIR={cache}"
    )


def _is_unknown_platform(error: Exception) -> bool:
  """Whether JAX does not know the platform that JAX_PLATFORMS names."""
  return isinstance(error, RuntimeError) and str(error).startswith(
    "Unable to initialize backend"
  )
