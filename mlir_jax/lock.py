"""Lets only one run use a workdir: a lock on a disk, a lease on object storage.

If two runs write to one folder, they lose each other's lines and checkpoints.
Process 0 holds the lock for all processes of its run.

On a disk, it is a lock of the operating system (flock) on a file. It ends when
its process ends, for any reason, so the same command can start again. The text
of the file only says who holds it.

Object storage has no locks. There the lease is an object. Its holder writes it
again every few seconds, on condition that nobody else has written it. Another
run that finds the object watches it. If the object is written again, its run is
alive. If it does not change until it expires, its run is dead. So the clocks of
two machines are never compared. A holder that cannot write in time ends its run
before the lease expires.
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
from typing import Any, NoReturn

from mlir_jax.hosts import links
from mlir_jax.storage import locations

FILE = "run.lock"

# Seconds. After a killed run, a start waits at most this long. It is less than
# a launcher takes to start all hosts again, and less than
# hosts.check_in_seconds.
EXPIRES = 30.0
RENEWED_EVERY = 5.0
# The run ends this many seconds before the lease expires.
_MARGIN = 5.0

# Characters that are read of a holder's text, which is far shorter.
_MAX_TEXT = 2000

# The errors of file systems without locks.
_NO_LOCKS = (
  errno.ENOLCK,
  errno.ENOSYS,
  errno.EOPNOTSUPP,
  errno.ENOTSUP,
  errno.EINVAL,
)


@contextlib.contextmanager
def hold(
  folder: str,
  end: Callable[[int, str], None] | None = None,
  setting: str = "--workdir",
) -> Iterator[None]:
  """Within this context, no other run can use the folder.

  Args:
    folder: The run's folder, from `locations.absolute`; made if missing.
    end: A thread calls it with a status and a reason if the lease is lost. It
      ends all processes of the run.
    setting: The flag that names the folder, for the message.

  Raises:
    ValueError: if another run uses the folder; it names that run's process.
  """
  if locations.is_url(folder):
    with _lease(folder, end or _end, setting):
      yield
  else:
    with _flock(folder, setting):
      yield


def _holder() -> dict[str, str | int]:
  return {
    "host": socket.gethostname(),
    "pid": os.getpid(),
    "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
  }


def _refuse(folder: str, text: str | bytes, setting: str) -> NoReturn:
  """Raises ValueError, with the text that the holder wrote."""
  try:
    found = json.loads(text)
    who = f"process {found['pid']} on {found['host']}, since {found['since']}"
  except (ValueError, KeyError, TypeError, RecursionError):
    who = "its process is unknown"
  who = links.printable(who)
  raise ValueError(
    f"Another run uses {folder} ({who}): wait until it has ended, stop it, or"
    f" give another {setting}."
  )


@contextlib.contextmanager
def _flock(folder: str, setting: str) -> Iterator[None]:
  os.makedirs(folder, exist_ok=True)
  path = os.path.join(folder, FILE)
  # Python adds O_CLOEXEC: programs that this one starts do not inherit it.
  flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
  descriptor = os.open(path, flags, 0o644)
  with open(descriptor, "r+", encoding="utf-8", errors="replace") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      _refuse(folder, file.read(_MAX_TEXT), setting)
    except OSError as error:
      if error.errno not in _NO_LOCKS:
        raise OSError(error.errno, error.strerror, path) from error
      print(
        f"The file system of {folder} has no locks ({error.strerror}): a second"
        " run could use this folder, too. Start only one.",
        file=sys.stderr,
      )
    file.truncate(0)
    file.write(json.dumps(_holder()) + "\n")
    file.flush()
    yield


class _Lease:
  """An object on the storage that says who holds the folder."""

  def __init__(self, folder: str, setting: str):
    import tensorstore  # Orbax depends on it. It can write on a condition.

    self._folder = folder
    self._setting = setting
    self._store = tensorstore.KvStore.open(f"{folder}/").result()
    self._holder: dict[str, Any] = _holder() | {"id": uuid.uuid4().hex}
    self._generation = b""

  def take(self) -> None:
    """Takes the lease, when its holder has released it or it has expired."""
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
        _refuse(self._folder, now.value, self._setting)
      found = now
    self._generation = found.stamp.generation
    if not self.renew(EXPIRES):
      found = self._store.read(FILE).result()
      _refuse(self._folder, found.value, self._setting)

  def renew(self, max_seconds: float) -> bool:
    """Writes the object again; returns whether this run still holds it.

    Args:
      max_seconds: How long this may take.

    Raises:
      Exception: if the storage fails, or TimeoutError.
    """
    text = json.dumps(self._holder | {"renewed": time.time_ns()})
    generation = self._write(text.encode(), max_seconds)
    if not generation:
      # The storage may have written it, but its answer was lost, and the next
      # try has failed.
      found = self._store.read(FILE).result(max_seconds)
      if self._holder["id"].encode() not in found.value:
        return False
      generation = found.stamp.generation
    self._generation = generation
    return True

  def release(self) -> None:
    """Leaves the object empty: the next holder compares with its generation."""
    self._write(b"", EXPIRES)

  def _write(self, content: bytes, max_seconds: float) -> bytes:
    """Returns the new generation; b"" if the condition was not met."""
    writing = self._store.write(FILE, content, if_equal=self._generation)
    return writing.result(max_seconds).generation


@contextlib.contextmanager
def _lease(
  folder: str, end: Callable[[int, str], None], setting: str
) -> Iterator[None]:
  lease = _Lease(folder, setting)
  lease.take()
  done = threading.Event()

  def renew_often():
    renewed = time.monotonic()
    while not done.wait(RENEWED_EVERY):
      started = time.monotonic()
      reason = "another run has taken it"
      try:
        # This process may have been stopped for longer than the lease lasts.
        held = lease.renew(max(renewed + EXPIRES - _MARGIN - started, 0.1))
      except Exception as error:
        held = time.monotonic() < renewed + EXPIRES - _MARGIN
        reason = f"it could not be renewed, {type(error).__name__}: {error}"
      else:
        renewed = started
      if not held:
        end(links.EXIT_LOST, f"The lease on {folder} is lost: {reason}.")
        return

  thread = threading.Thread(target=renew_often, name="lease", daemon=True)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join(EXPIRES)
    with contextlib.suppress(Exception):  # Then it expires.
      lease.release()


def _end(status: int, reason: str) -> None:
  """Ends this process now, and the other processes of its run."""
  from mlir_jax.hosts import multihost

  print(f"\n{reason}", file=sys.stderr, flush=True)
  multihost.fail(status, reason)
  os._exit(status)
