"""One run on one workdir: a lock on a disk, a lease on object storage.

Two runs that write to one folder lose each other's lines and checkpoints.
Process 0 holds it for all processes of its run.

On a disk it is a lock of the operating system (flock) on a file. It ends with
its process, however that ends, so that the same command can start again. The
file's text only says who holds it.

Object storage has no locks. There it is an object that its holder writes anew
every few seconds, each time on condition that nobody else wrote it. Who finds
one watches it: if it is written anew, its run is alive; if it stays as it is
until it expires, its run is dead. So clocks of two machines are never
compared. A holder that could not write in time ends its run before the lease
expires.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from mlir_jax.data import records
from mlir_jax.storage import locations

FILE = "run.lock"

# Seconds. A start after a killed run waits this long at most: less than a
# launcher takes to start all hosts again, and than hosts.check_in_seconds.
EXPIRES = 30.0
RENEWED_EVERY = 5.0
# Of the time until it expires, what is left to end the run in.
_MARGIN = 5.0

# Characters of what a holder writes of itself, with room to spare.
_LONGEST = 2000

# What file systems without locks answer.
_NO_LOCKS = (
  errno.ENOLCK,
  errno.ENOSYS,
  errno.EOPNOTSUPP,
  errno.ENOTSUP,
  errno.EINVAL,
)

# The exit status of a run whose lease was lost: launchers start it again.
EXIT_LOST = 69


@contextlib.contextmanager
def hold(
  folder: str, end: Callable[[int, str], None] | None = None
) -> Iterator[None]:
  """Within this context no other run can hold the folder.

  Args:
    folder: The run's folder, from `locations.absolute`; made if missing.
    end: Ends the process, and the others of its run, with a status and a
      reason; called from a thread if a lease cannot be renewed.

  Raises:
    ValueError: if another run holds it; it names that run's process.
  """
  if locations.is_url(folder):
    with _lease(folder, end or _end):
      yield
  else:
    with _flock(folder):
      yield


def _holder() -> dict[str, str | int]:
  return {
    "host": socket.gethostname(),
    "pid": os.getpid(),
    "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
  }


def _refuse(folder: str, text: str | bytes) -> None:
  """Raises ValueError with what the holder wrote of itself."""
  try:
    found = json.loads(text)
    who = f"process {found['pid']} on {found['host']}, since {found['since']}"
  except (ValueError, KeyError, TypeError, RecursionError):
    who = "it did not write which process it is"
  who = records.printable(who)
  raise ValueError(
    f"Another run uses {folder} ({who}): wait until it has ended, stop it, or"
    " give another --workdir."
  )


@contextlib.contextmanager
def _flock(folder: str) -> Iterator[None]:
  os.makedirs(folder, exist_ok=True)
  path = os.path.join(folder, FILE)
  # Python opens it so that programs that are started do not inherit it.
  flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
  descriptor = os.open(path, flags, 0o644)
  with open(descriptor, "r+", encoding="utf-8", errors="replace") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      _refuse(folder, file.read(_LONGEST))
    except OSError as error:
      if error.errno not in _NO_LOCKS:
        raise OSError(error.errno, error.strerror, path) from error
      print(
        f"The file system of {folder} has no locks ({error.strerror}): nothing"
        " keeps a second run from this folder. Start only one.",
        file=sys.stderr,
      )
    file.truncate(0)
    file.write(json.dumps(_holder()) + "\n")
    file.flush()
    yield


class _Lease:
  """An object that says who holds the folder, and is written on a condition."""

  def __init__(self, folder: str):
    import tensorstore  # Orbax brings it; it can write on a condition.

    self._folder = folder
    self._store = tensorstore.KvStore.open(f"{folder}/").result()
    self._holder: dict[str, Any] = _holder() | {"id": uuid.uuid4().hex}
    self._generation = b""

  def take(self) -> None:
    """Takes it, once its last holder has let it go or it has expired."""
    found = self._store.read(FILE).result()
    first = time.monotonic()
    if found.value:
      print(
        f"Another run has used {self._folder}: waiting up to {EXPIRES:g} s to"
        " see whether it has ended.",
        file=sys.stderr,
      )
    while found.value and time.monotonic() - first < EXPIRES:
      time.sleep(min(1.0, EXPIRES / 10))
      now = self._store.read(FILE).result()
      if now.value and now.stamp.generation != found.stamp.generation:
        _refuse(self._folder, now.value)
      found = now
    self._generation = found.stamp.generation
    if not self.renew(EXPIRES):
      _refuse(self._folder, self._store.read(FILE).result().value)

  def renew(self, limit: float) -> bool:
    """Writes it anew; whether it is still held.

    Args:
      limit: Seconds that this may take.

    Raises:
      Exception: of the storage, or TimeoutError.
    """
    text = json.dumps(self._holder | {"renewed": time.time_ns()})
    generation = self._write(text.encode(), limit)
    if not generation:
      # An answer may have been lost, so that it was written, and tried again.
      found = self._store.read(FILE).result(limit)
      if self._holder["id"].encode() not in found.value:
        return False
      generation = found.stamp.generation
    self._generation = generation
    return True

  def let_go(self) -> None:
    """Leaves it empty: a generation for the next one to compare with."""
    self._write(b"", EXPIRES)

  def _write(self, content: bytes, limit: float) -> bytes:
    """The new generation; b"" if the condition was not met."""
    writing = self._store.write(FILE, content, if_equal=self._generation)
    return writing.result(limit).generation


@contextlib.contextmanager
def _lease(folder: str, end: Callable[[int, str], None]) -> Iterator[None]:
  lease = _Lease(folder)
  lease.take()
  done = threading.Event()

  def keep():
    renewed = time.monotonic()
    while not done.wait(RENEWED_EVERY):
      started = time.monotonic()
      reason = "another run has taken it"
      try:
        # This process may have been stopped for longer than it lasts.
        held = lease.renew(max(renewed + EXPIRES - _MARGIN - started, 0.1))
      except Exception as error:
        held = time.monotonic() < renewed + EXPIRES - _MARGIN
        reason = f"it could not be renewed, {type(error).__name__}: {error}"
      else:
        renewed = started
      if not held:
        end(EXIT_LOST, f"The lease on {folder} is lost: {reason}.")
        return

  thread = threading.Thread(target=keep, name="lease", daemon=True)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join(EXPIRES)
    with contextlib.suppress(Exception):  # Then it expires.
      lease.let_go()


def _end(status: int, reason: str) -> None:
  """Ends this process now, and the others of its run."""
  from mlir_jax.hosts import multihost

  print(f"\n{reason}", file=sys.stderr, flush=True)
  multihost.fail(status, reason)
  os._exit(status)
