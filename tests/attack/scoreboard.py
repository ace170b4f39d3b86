"""What an attack's case is, how its outcome is judged, and the scoreboard."""

import collections
import contextlib
import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from unittest import mock

# A case's code leaves a file of this name if the product runs it.
MARKER = "EXECUTED"
GOOD = ("told", "right")
OUTCOMES = (*GOOD, "silent", "traceback", "executed", "hung")
# Errors that the package raises for bad input. Others are faults.
_USER_ERRORS = (ValueError, OSError, ImportError, ArithmeticError, MemoryError)
# Subclasses that the language raises by itself: nobody wrote their message.
_ACCIDENTS = (UnicodeError, RecursionError, ZeroDivisionError)


class WrongResultError(AssertionError):
  """The input was accepted, and the result is not the right one."""


@dataclasses.dataclass(frozen=True)
class Case:
  """One attack.

  Attributes:
    name: Unique, "reader/kind of damage".
    right: What is right, in words.
    attack: Receives an empty folder; makes the input there and gives it to
      the product. It returns if the product accepted the input and the result
      is right, raises `WrongResultError` if the result is wrong, and lets the
      product's own errors through.
    names: What an error's message must contain: the file, field or setting.
    seconds: The limit.
  """

  name: str
  right: str
  attack: Callable[[pathlib.Path], object]
  names: tuple[str, ...] = ()
  seconds: int = 60


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a case ended: one of `OUTCOMES`, and what was seen."""

  kind: str
  seen: str


class HungError(BaseException):
  """A case took longer than its limit; no `except Exception` stops it."""


def expect(is_right: bool, seen: object) -> None:
  """Raises `WrongResultError` unless the result is right.

  Args:
    is_right: Whether it is.
    seen: What there is instead, for the scoreboard.
  """
  if not is_right:
    raise WrongResultError(str(seen))


def check_ended(
  ended: subprocess.CompletedProcess, names: Iterable[str] = ()
) -> None:
  """Turns the end of a main's process into what a case raises.

  Args:
    ended: Run with text output, both streams captured.
    names: Strings that the message of a refusal must contain.

  Raises:
    ValueError: with the message, for exit status 2 and one line.
    RuntimeError: for a traceback, or a failure that is not such a refusal.
  """
  if not ended.returncode:
    return
  lines = ended.stderr.strip().splitlines()
  message = lines[-1] if lines else ""
  if "Traceback" in ended.stderr or ended.returncode != 2:
    raise RuntimeError(f"exit status {ended.returncode}: {message}")
  missing = [name for name in names if name not in ended.stderr]
  if missing:
    raise RuntimeError(f"does not name {missing}: {message}")
  raise ValueError(ended.stderr.strip())


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
  """Raises `HungError` in the block after so many seconds."""

  def stop(*_):
    raise HungError

  before = signal.signal(signal.SIGALRM, stop)
  signal.alarm(seconds)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def judge(case: Case, folder: pathlib.Path) -> Outcome:
  """Runs a case in an empty folder."""
  try:
    with time_limit(case.seconds):
      case.attack(folder)
    outcome = Outcome("right", "")
  except HungError:
    outcome = Outcome("hung", f"no end within {case.seconds} s")
  except WrongResultError as error:
    outcome = Outcome("silent", str(error))
  except SystemExit as error:
    outcome = Outcome("traceback", f"SystemExit: {error}")
  except _USER_ERRORS as error:
    outcome = _judge_error(case, error)
  except BaseException as error:
    outcome = Outcome("traceback", f"{type(error).__name__}: {error}")
  if any(folder.rglob(MARKER)):
    return Outcome("executed", outcome.seen)
  return outcome


def _judge_error(case: Case, error: Exception) -> Outcome:
  seen = f"{type(error).__name__}: {error}"
  if isinstance(error, _ACCIDENTS):
    return Outcome("traceback", seen)
  # Compilers and libraries put their own word before the message.
  if re.match("[A-Z_]+: ", str(error)):
    return Outcome("traceback", seen)
  missing = [name for name in case.names if name not in str(error)]
  if missing:
    return Outcome("traceback", f"does not name {missing}: {seen}")
  return Outcome("told", seen)


def run_all(cases: Iterable[Case]) -> dict[str, Outcome]:
  """Runs the cases, each in a folder of its own.

  They share a cache: what was checked once is remembered in the user's.
  """
  outcomes = {}
  with (
    tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache,
    mock.patch.dict(os.environ, XDG_CACHE_HOME=cache),
  ):
    for case in cases:
      if case.name in outcomes:
        raise ValueError(f"Two cases have the name {case.name!r}.")
      with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        outcomes[case.name] = judge(case, pathlib.Path(folder))
  return outcomes


def table(outcomes: Mapping[str, Outcome]) -> str:
  """The counts, and each case that is not good."""
  counts = collections.Counter(outcome.kind for outcome in outcomes.values())
  lines = [f"{len(outcomes)} cases"]
  lines += [f"  {kind:10}{counts[kind]:5}" for kind in OUTCOMES]
  lines += [
    f"{outcome.kind}: {name}: {outcome.seen[:300]}"
    for name, outcome in outcomes.items()
    if outcome.kind not in GOOD
  ]
  return "\n".join(lines)


def main(cases: Iterable[Case]) -> None:
  """Prints the scoreboard; exits with 1 if a case is not good."""
  outcomes = run_all(cases)
  print(table(outcomes))
  if any(outcome.kind not in GOOD for outcome in outcomes.values()):
    sys.exit(1)
