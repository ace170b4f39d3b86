"""SHA-256 of files and values."""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import platform
import time
from collections.abc import Iterator, Mapping
from typing import Any

from mlir_jax.storage import locations, reading, writing

# If a file was written within this time before its check, it may be written
# again and keep the same time of change. Such a check is not remembered.
_FRESH_SECONDS = 2


def of_file(path: str | os.PathLike) -> str:
  """Returns the SHA-256 of a file's content."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def of_value(value: Any) -> str:
  """Returns the SHA-256 of a value that JSON can hold.

  It is the same after the value was stored as JSON.
  """
  text = json.dumps(value, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def check(
  folder: str | os.PathLike, expected: Mapping[str, str], mend: str
) -> None:
  """Checks that files have not changed since they were written.

  A checked file is not read again on this machine while its size, its times of
  change and its inode stay the same: the user's cache remembers it. If several
  processes of a machine check it, one reads and the others wait.

  Args:
    folder: The folder of the files.
    expected: Their SHA-256, by their paths in the folder.
    mend: What to do about a changed file, a sentence.

  Raises:
    UnreadableError: if a file has changed; it names the file.
  """
  memory = _memory(folder)
  with _alone(memory):
    known = _remembered(memory)
    # Others may have checked other files of the folder.
    seen = known | _check(folder, expected, mend, known)
    if seen != known:
      _remember(memory, seen)


def _check(
  folder: str | os.PathLike,
  expected: Mapping[str, str],
  mend: str,
  known: Mapping[str, list],
) -> dict[str, list]:
  """Checks the files that are not known; returns those to remember."""
  seen = {}
  for name, sha256 in expected.items():
    path = pathlib.Path(folder) / name
    reading.check_file(path, mend)
    now = time.time()
    found = path.stat()
    state = [
      *(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino),
      sha256,
    ]
    if known.get(name) != state and of_file(path) != sha256:
      raise reading.UnreadableError(
        f"{path} has changed since it was written: its SHA-256 differs. {mend}"
      )
    if now - max(found.st_mtime, found.st_ctime) > _FRESH_SECONDS:
      seen[name] = state
  return seen


def _memory(folder: str | os.PathLike) -> pathlib.Path:
  """Returns the file that remembers which files of a folder were checked."""
  # Machines may share the user's home, but not the folder at this path.
  place = f"{platform.node()}:{os.path.realpath(folder)}"
  name = hashlib.sha256(place.encode()).hexdigest()[:16]
  return pathlib.Path(locations.user_cache()) / "checked" / f"{name}.json"


@contextlib.contextmanager
def _alone(memory: pathlib.Path) -> Iterator[None]:
  """Within this context, no other process here checks the same folder."""
  with contextlib.ExitStack() as stack:
    # Without a cache or without locks, each process checks all files.
    with contextlib.suppress(OSError):
      memory.parent.mkdir(parents=True, exist_ok=True)
      lock = stack.enter_context(open(memory.with_suffix(".lock"), "w"))
      fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def _remembered(memory: pathlib.Path) -> dict:
  try:
    found = json.loads(memory.read_bytes())
  except (OSError, ValueError, RecursionError):
    return {}  # Then all files are checked.
  return found if isinstance(found, dict) else {}


def _remember(memory: pathlib.Path, seen: Mapping[str, list]) -> None:
  """Stores what was checked; without a cache, each call checks again."""
  try:
    writing.write_aside(str(memory), json.dumps(seen))
  except (OSError, ValueError):
    return
