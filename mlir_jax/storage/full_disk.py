"""Reports a full disk in one line, whichever library finds it.

Each library has its own error for it. Libraries that write in the background
also log it, or fail once more when the process ends.
"""

import atexit
import contextlib
import errno
import logging
import os
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator

from absl import flags
from absl import logging as absl_logging

# EFBIG: a limit on the size of files, as `ulimit -f` sets it.
_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Texts in errors that are not an OSError: of tensorstore, of safetensors, ...
_TEXTS = tuple(os.strerror(number) for number in _NUMBERS)
_PATH = re.compile(r'"(/[^"]*)"')
_MIN_FREE_BYTES = 2**20

# An error of tensorstore, whose loop was closed after a write had failed.
_CLOSED_LOOP = "Event loop is closed"


def find(error: BaseException | None) -> BaseException | None:
  """Returns the error of a full disk among an error and its causes, or None."""
  seen = []
  while error is not None and error not in seen:
    if getattr(error, "errno", None) in _NUMBERS or any(
      text in str(error) for text in _TEXTS
    ):
      return error
    seen.append(error)
    error = error.__cause__ or error.__context__
  return None


def message(error: BaseException) -> str:
  """Says in one line where the disk is full, and what to do.

  Args:
    error: From `find`.
  """
  place = getattr(error, "filename", None)
  if not place and (named := _PATH.search(str(error))):
    place = named[1]
  reason = next(
    (text for text in _TEXTS if text in str(error)),
    os.strerror(getattr(error, "errno", None) or errno.ENOSPC),
  )
  where = place or " or ".join(_full_places())
  return (
    f"{where}: {reason[0].lower()}{reason[1:]}. Free some space, then start the"
    " same command again."
  )


def _full_places() -> list[str]:
  """Returns the folders to which a program writes: the full ones, if any."""
  values = flags.FLAGS.flag_values_dict() if flags.FLAGS.is_parsed() else {}
  given = [values.get(name) for name in ("output", "workdir")]
  folders = [*filter(None, given), tempfile.gettempdir()]
  full = [folder for folder in folders if _free_bytes(folder) < _MIN_FREE_BYTES]
  return full or folders[:1]


def _free_bytes(folder: str) -> float:
  while not os.path.exists(folder) and folder != os.path.dirname(folder):
    folder = os.path.dirname(folder)
  try:
    found = os.statvfs(folder or ".")
  except OSError:
    return float("inf")
  return found.f_bavail * found.f_frsize


@contextlib.contextmanager
def reported_once(refuse: Callable[[str], object]) -> Iterator[None]:
  """Within this context, one line reports a full disk, and nothing else does.

  Args:
    refuse: Receives the line, and ends the program.
  """
  loggers = absl_logging.get_absl_logger(), logging.getLogger("asyncio")
  before = sys.excepthook, threading.excepthook

  def uncaught(kind, error, trace):
    # Libraries also call it, for errors in their own threads.
    if _CLOSED_LOOP not in str(error):
      before[0](kind, error, trace)

  def uncaught_in_thread(args):
    if not find(args.exc_value):
      before[1](args)

  for logger in loggers:
    logger.addFilter(_is_other)
  sys.excepthook, threading.excepthook = uncaught, uncaught_in_thread
  # JAX warns that it cannot store a compiled program, and goes on.
  warnings.filterwarnings("ignore", f".*({'|'.join(_TEXTS)})")
  try:
    yield
  except Exception as error:
    if not (cause := find(error)):
      raise
    # Files that are still open fail once more when they are closed.
    atexit.register(_silence)
    refuse(message(cause))
  finally:
    for logger in loggers:
      logger.removeFilter(_is_other)
    sys.excepthook, threading.excepthook = before


def _is_other(record: logging.LogRecord) -> bool:
  """Whether a line of the log is not about a full disk."""
  if record.exc_info and find(record.exc_info[1]):
    return False
  line = record.getMessage()
  return not any(text in line for text in _TEXTS)


def _silence() -> None:
  sys.stderr.flush()
  with open(os.devnull, "wb") as nowhere:
    os.dup2(nowhere.fileno(), 2)
