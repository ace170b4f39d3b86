"""Runs a program of the package in this process."""

import contextlib
import io
import runpy
import sys
import warnings
from unittest import mock

from absl import app, flags

from mlir_jax.command_line import program, shared_flags


def run(name: str, *arguments: str) -> int:
  """Runs a program as `python -m mlir_jax.NAME` does; returns its status."""
  app.define_help_flags()
  known = set(flags.FLAGS)
  try:
    with (
      mock.patch.object(sys, "argv", [name, *arguments]),
      warnings.catch_warnings(),  # A program decides how they are shown.
    ):
      runpy.run_module(f"mlir_jax.{name}", run_name="__main__", alter_sys=True)
  except SystemExit as stopped:
    return stopped.code or 0
  finally:
    for each in set(flags.FLAGS) - known:
      delattr(flags.FLAGS, each)
    flags.FLAGS.unparse_flags()
  return 0


def parse(name: str, *arguments: str) -> int:
  """Parses the flags of a program, and checks its config; it does no more."""

  def start(_, flags_parser):
    flags_parser(sys.argv)

  with mock.patch.object(program.app, "run", start):
    return run(name, *arguments)


@contextlib.contextmanager
def quiet():
  """Within it, what programs print is kept in the text that it yields."""
  printed = io.StringIO()
  with (
    contextlib.redirect_stdout(printed),
    contextlib.redirect_stderr(printed),
  ):
    yield printed


assert shared_flags  # Importing it here keeps its flags out of `run`'s.
