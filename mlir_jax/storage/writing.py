"""Writes aside, then renames: a file or a folder is whole, or it is not there.

Both forms write next to the path, under the name .NAME.RANDOM.tmp. Nobody can
foresee this name, and it is always new, so no link leads elsewhere.
"""

import contextlib
import errno
import fcntl
import glob
import os
import pathlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from typing import BinaryIO, TextIO

from etils import epath

from mlir_jax.storage import locations

_RANDOM_BYTES = 8


class TakenError(FileExistsError):
  """Another writer was faster: its folder has the name."""


@contextlib.contextmanager
def writing_aside(path: str) -> Iterator[BinaryIO]:
  """Opens a file that gets its name when the block ends without an error.

  If several processes write the same file, the last one's file stays, whole.
  Object storage keeps no partial file: there the content waits in a temporary
  file on this machine.

  Args:
    path: The file, or its URL. Its folder is made if missing. After an error
      the file is as it was before.

  Yields:
    The binary file, open for writing; it can seek.

  Raises:
    ValueError: if `path` is a folder, a device or a pipe.
  """
  if locations.is_url(path):
    with tempfile.TemporaryFile() as file:
      yield file
      file.seek(0)
      with epath.Path(path).open("wb") as target:
        shutil.copyfileobj(file, target)
    return
  if os.path.exists(path) and not os.path.isfile(path):
    raise ValueError(f"{path} exists and is not a file: give another name.")
  aside = _name_aside(pathlib.Path(os.path.abspath(path)))
  aside.parent.mkdir(parents=True, exist_ok=True)
  try:
    # "x": it must be new. Unlike tempfile's, its mode is that of any file.
    with open(aside, "xb") as file:
      yield file
    os.replace(aside, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.unlink(aside)
    raise


def write_aside(path: str, content: str | bytes) -> None:
  """Writes a file, whole or not at all; see `writing_aside`."""
  if isinstance(content, str):
    content = content.encode("utf-8")
  with writing_aside(path) as file:
    file.write(content)


@contextlib.contextmanager
def folder_aside(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Makes a folder that gets its name when the block ends without an error.

  A killed process leaves its unfinished folder. The next writer of the same
  path removes it. Unfinished folders of living processes are locked.

  Args:
    path: Where the folder will be, on a disk. It may be an empty folder. Its
      parent is made if missing. After an error, nothing is written there.

  Yields:
    An empty folder to write in, on the same disk.

  Raises:
    TakenError: if another process has written to `path` in the meantime.
  """
  path = pathlib.Path(os.path.abspath(path))
  path.parent.mkdir(parents=True, exist_ok=True)
  _remove_unfinished(path)
  around, lock = _locked_folder(path)
  try:
    with lock:
      # One level deeper: other users cannot open `around`, but they may open
      # the finished folder.
      content = around / "content"
      content.mkdir()
      yield content
      try:
        os.rename(content, path)
      except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
          raise TakenError(
            error.errno, "another process has written it", str(path)
          ) from error
        raise
  finally:
    shutil.rmtree(around, ignore_errors=True)


@contextlib.contextmanager
def folder_resumed(
  path: str | os.PathLike, key: str
) -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
  """Makes a folder in steps, which a killed process does not lose.

  The block finds what an earlier block with the same key has left. A step must
  write aside, then rename. If several processes make the same folder, one works
  and the others wait.

  Args:
    path: Where the folder will be, on a disk. Its parent is made if missing. It
      gets its name when the block ends without an error.
    key: Names the content: the same steps with the same results.

  Yields:
    The folder to write in, and a folder for what is not needed in the end.

  Raises:
    TakenError: if another process has written to `path` in the meantime.
  """
  path = pathlib.Path(os.path.abspath(path))
  path.parent.mkdir(parents=True, exist_ok=True)
  _remove_unfinished(path)
  around = path.with_name(f".{path.name}.unfinished")
  if around.is_symlink():  # Its name can be foreseen.
    around.unlink()
  around.mkdir(mode=0o700, exist_ok=True)
  with open(around / "lock", "w", encoding="utf-8") as lock:
    # Without locks, nobody waits.
    with contextlib.suppress(OSError):
      fcntl.flock(lock, fcntl.LOCK_EX)
    if path.exists() or not (around / "lock").exists():
      raise TakenError(
        errno.EEXIST, "another process has written it", str(path)
      )
    known, content, needed = (
      around / name for name in ("key", "content", "needed")
    )
    is_known = known.exists() and known.read_text(encoding="utf-8") == key
    if not is_known or not content.exists():
      known.unlink(missing_ok=True)
      for folder in (content, needed):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
      write_aside(str(known), key)
    yield content, needed
    shutil.rmtree(needed, ignore_errors=True)  # It may be large.
    os.rename(content, path)
    shutil.rmtree(around, ignore_errors=True)


def _name_aside(path: pathlib.Path) -> pathlib.Path:
  # A part of the name, since file systems limit the length of names.
  random = secrets.token_hex(_RANDOM_BYTES)
  return path.with_name(f".{path.name[:40]}.{random}.tmp")


def _locked_folder(path: pathlib.Path) -> tuple[pathlib.Path, TextIO]:
  """Makes a folder aside with an open file that is locked until it is closed.

  The system closes it when the process ends, so the lock tells the folder of a
  living process from that of a killed one.
  """
  while True:
    around = _name_aside(path)
    around.mkdir(mode=0o700)
    # Until it is locked, another process may remove it. Then try again.
    with contextlib.suppress(FileNotFoundError):
      file = open(around / "lock", "w", encoding="utf-8")  # noqa: SIM115
      # If the file system has no locks, nobody can remove the folder.
      with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)
      if (around / "lock").exists():
        return around, file
      file.close()


def _remove_unfinished(path: pathlib.Path) -> None:
  """Removes the folders that killed processes left next to the path."""
  name, digit = glob.escape(path.name[:40]), "[0-9a-f]"
  for around in path.parent.glob(f".{name}.{digit * 2 * _RANDOM_BYTES}.tmp"):
    # An OSError means: it is a file, it is locked, it cannot be locked, or it
    # was just renamed.
    with contextlib.suppress(OSError):
      around.rmdir()  # Its process was killed before it made the lock.
    with (
      contextlib.suppress(OSError),
      open(around / "lock", "r+", encoding="utf-8") as file,
    ):
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      shutil.rmtree(around, ignore_errors=True)
