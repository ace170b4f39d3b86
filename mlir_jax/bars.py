"""Makes progress bars, which become a few lines where there is no terminal."""

import re
import sys
from collections.abc import Iterable
from typing import Any

import tqdm

# Seconds between two lines where there is no terminal.
LOG_EVERY = 30.0
_CURSOR_MOVES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class _Lines:
  """A file that writes each state of a bar as a line of its own."""

  def __init__(self, file: Any):
    self._file = file

  def write(self, text: str) -> None:
    """Writes each state that is not blank; a carriage return ends a state."""
    # A bar inside another bar moves the cursor.
    text = _CURSOR_MOVES.sub("", text)
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
    items: What to go through; None for a bar that the caller moves.
    description: The text before the bar.
    unit: The name of an item, e.g. "text".
    delay: Seconds before the bar is shown; short work needs no bar.
    **settings: Other settings of tqdm.

  Returns:
    The bar. If the standard error is not a terminal, it writes a line at most
    every `LOG_EVERY` seconds.
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
