"""Ends a program without an error when nobody reads its output any more."""

import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import Any

# A shell shows this status of a program that SIGPIPE has ended.
STATUS = 128 + signal.SIGPIPE


def left() -> list[Any]:
  """Returns those of the standard outputs that nobody reads any more."""
  return [
    stream for stream in (sys.stdout, sys.stderr) if _has_no_reader(stream)
  ]


def _has_no_reader(stream: Any) -> bool:
  try:
    poll = select.poll()
    poll.register(stream.fileno(), 0)  # POLLERR is always reported.
    return any(event & select.POLLERR for _, event in poll.poll(0))
  except (AttributeError, OSError, ValueError):  # It is no file, or is closed.
    return False


@contextlib.contextmanager
def may_be_left() -> Iterator[None]:
  """Ends the program if the reader of its output leaves, as `head` does.

  Another broken pipe, such as that of a connection, stays an error.
  """
  status = STATUS
  try:
    try:
      yield
    except SystemExit as ended:
      status = ended.code or STATUS
      raise
    finally:
      if sys.stdout and not sys.stdout.closed:
        sys.stdout.flush()  # Python would print an error at its end.
  except BrokenPipeError:
    streams = left()
    if not streams:
      raise
    with open(os.devnull, "wb") as nowhere:
      for stream in streams:
        os.dup2(nowhere.fileno(), stream.fileno())
    sys.exit(status)
