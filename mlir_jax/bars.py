"""Progress bars: drawn on a terminal, elsewhere a line now and then."""

import re
import sys
from collections.abc import Iterable
from typing import Any

import tqdm

# Seconds between two lines of a log.
LOG_EVERY = 30.0
_MOVES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class _Lines:
  """A file that writes each state of a bar as a line of its own."""

  def __init__(self, file: Any):
    self._file = file

  def write(self, text: str) -> None:
    """Writes what is not blank; a carriage return begins a new state."""
    text = _MOVES.sub("", text)  # A bar inside another one moves the cursor.
    for line in text.replace("\r", "\n").split("\n"):
      if line.strip():
        self._file.write(f"{line.strip()}\n")

  def flush(self) -> None:
    """Flushes the file."""
    self._file.flush()


def bar(
  items: Iterable[Any] | None = None,
  description: str | None = None,
  *,
  unit: str,
  delay: float = 0.0,
  **settings: Any,
) -> tqdm.tqdm:
  """Makes a bar on the standard error.

  Args:
    items: What to go through; None for a bar that is moved by hand.
    description: What is going on.
    unit: Of what is counted: "text".
    delay: Seconds before it is shown; short work needs no bar.
    **settings: Others of tqdm.

  Returns:
    The bar. Where the standard error is not a terminal it writes a line, at
    most once in `LOG_EVERY` seconds.
  """
  if not sys.stderr.isatty():
    settings |= {
      "file": _Lines(sys.stderr),
      "mininterval": LOG_EVERY,
      "maxinterval": LOG_EVERY,
      "dynamic_ncols": False,
      "ncols": 100,
    }
    delay = LOG_EVERY
  return tqdm.tqdm(items, description, unit=unit, delay=delay, **settings)
