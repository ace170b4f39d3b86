"""Finds, opens and hashes the files of a collection.

A file is plain UTF-8 or gzip, and its name says which. A Git LFS pointer, any
other archive and any other encoding are refused.
"""

import contextlib
import gzip
import hashlib
import io
import os
import pathlib
import re
import stat
import zlib
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

from mlir_jax.data import records
from mlir_jax.storage import reading
from mlir_jax.storage import writing as writing_lib

_BUFFER_BYTES = 1 << 20
_HEAD_BYTES = 512

_GZIP = b"\x1f\x8b"
# The first bytes of other kinds of files, with the kind and what to do.
_OTHER_KINDS = (
  (re.compile(rb"PK\x03\x04"), "a zip archive; unpack it"),
  (re.compile(rb"\xfd7zXZ\0"), "an xz file; unpack it"),
  (re.compile(rb"BZh[1-9]1AY&SY"), "a bzip2 file; unpack it"),
  (re.compile(rb"\x28\xb5\x2f\xfd"), "a zstd file; unpack it"),
  (re.compile(rb"7z\xbc\xaf\x27\x1c"), "a 7z archive; unpack it"),
  (re.compile(rb"\xff\xfe|\xfe\xff"), "UTF-16 text; convert it to UTF-8"),
)

# Files that come with a corpus and hold no text of it: licences and the like,
# OPUS's alignments.
_COMPANION = re.compile(
  r"(README|LICEN[CS]E|COPYING|NOTICE|CITATION).*|.+\.(ids|xml)(\.gz)?",
  re.IGNORECASE,
)

# Controls, line separators, and bytes that are not UTF-8. Such a name in a
# message would break its line, or control the terminal.
_UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class UnchangedFile(os.PathLike):
  """A file that must hold the same bytes at each reading.

  All readers accept it as a path. `open_bytes` hashes the bytes that it reads
  and compares the hash at the file's end.

  Attributes:
    sha256: The hash of the bytes; "" before the file was first read.
  """

  def __init__(self, path: pathlib.Path):
    self._path = path
    self.sha256 = ""

  def __fspath__(self) -> str:
    return os.fspath(self._path)

  def __str__(self) -> str:
    return str(self._path)

  def check(self, sha256: str) -> None:
    """Keeps the first hash, and compares later ones with it.

    Raises:
      RecordError: if the file holds other bytes than before.
    """
    self.sha256 = self.sha256 or sha256
    if sha256 != self.sha256:
      raise records.RecordError(
        f"{self} has changed since it was first read: start again when"
        " nothing writes to it."
      )

  def read_hash(self) -> str:
    """Reads the file and returns its SHA-256; raises as `check` does."""
    with naming(self), open(self, "rb") as file:
      sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    self.check(sha256)
    return sha256


class _HashedFile(io.RawIOBase):
  """Reads a file and hashes the bytes."""

  def __init__(self, file: io.RawIOBase):
    self._file = file
    self.digest = hashlib.sha256()

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int | None:
    count = self._file.readinto(buffer)
    self.digest.update(memoryview(buffer)[: count or 0])
    return count


def is_folder(path: pathlib.Path) -> bool:
  """Returns whether a path is a folder; if not, it is a file.

  Raises:
    ValueError: if it is neither (a link without a target, a pipe, a socket, a
      device), or if its name cannot be printed.
  """
  if _UNPRINTABLE.search(path.name):
    raise ValueError(
      f"{path.parent} holds {records.printable(path.name)}, a name with control"
      " characters or bytes that are not UTF-8: rename it."
    )
  try:
    mode = path.stat().st_mode
  except OSError as error:
    if not path.is_symlink():
      raise
    raise ValueError(
      f"{path} is a link to {os.readlink(path)}, which cannot be read"
      f" ({error.strerror}): repair or remove the link."
    ) from error
  if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
    return stat.S_ISDIR(mode)
  raise ValueError(
    f"{path} is neither a file nor a folder, but a pipe, a socket or a device:"
    " put a file there, or remove it."
  )


def is_companion(name: str) -> bool:
  """Returns whether a file of this name accompanies the texts of a corpus."""
  return bool(_COMPANION.fullmatch(name))


def list_files(
  folder: pathlib.Path,
  not_read: list[pathlib.Path] | None = None,
  folders: Collection[str] = (),
) -> dict[str, pathlib.Path]:
  """Lists the files of a folder, sorted by name.

  Args:
    folder: The folder.
    not_read: Receives the hidden files and folders, which are left out.
    folders: Names of folders that may be there; they are left out.

  Returns:
    Name without ".gz" to path.

  Raises:
    ValueError: for any other folder, for what is neither a file nor a folder,
      and for a file that is there both plain and gzipped.
  """
  found = {}
  for path in sorted(folder.iterdir()):
    if path.name.startswith("."):
      if not_read is not None:
        not_read.append(path)
      continue
    if is_folder(path) != (path.name in folders):
      raise ValueError(
        f"{path} should be a folder, but it is a file."
        if path.name in folders
        else f"{path} is a folder, and folders are not read here: move its"
        f" files to {folder}, or move it elsewhere."
      )
    if path.name in folders:
      continue
    name = path.name.removesuffix(".gz")
    if name in found:
      raise ValueError(
        f"{folder} holds both {name} and {name}.gz; remove one, or the same"
        " text is read twice."
      )
    found[name] = path
  return found


def _check_kind(path: str | os.PathLike, head: bytes) -> None:
  """Checks that a file's first bytes are not those of another kind of file.

  Raises:
    RecordError: if the file is an archive, or text in another encoding.
  """
  for pattern, kind in _OTHER_KINDS:
    if pattern.match(head):
      raise records.RecordError(f"{path} is {kind}.")


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
  """Adds the file's name to an error of its disk, which may lack it."""
  try:
    yield
  except OSError as error:
    if error.errno is not None and error.filename is None:
      error.filename = str(path)
    raise


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """Opens a file that gets its name when the block ends without an error.

  What is written is gzipped if the name ends in ".gz". Equal contents give
  equal bytes, whatever the file's name and the time are.
  """
  with writing_lib.writing_aside(os.fspath(path)) as file:
    if not str(path).endswith(".gz"):
      yield file
      return
    with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
      yield packed  # pyright: ignore[reportReturnType]


@contextlib.contextmanager
def open_bytes(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """Opens a file for reading bytes; decompresses a file named ".gz".

  Args:
    path: The file. If it is an `UnchangedFile` and the block reads to its end,
      it is compared with its earlier readings at the end of the block.

  Raises:
    RecordError: if the file's name does not say rightly whether it is gzipped,
      or if its first bytes are not those of UTF-8 text. Inside the block, if
      the gzip data is cut or damaged. After the block, if the file has changed.
    ValueError: if the file is a Git LFS pointer.
    OSError: if the file cannot be read; the error names it.
  """
  with contextlib.ExitStack() as stack:
    stack.enter_context(naming(path))
    raw: Any = stack.enter_context(open(path, "rb", buffering=0))
    if isinstance(path, UnchangedFile):
      raw = stack.enter_context(_HashedFile(raw))
    packed = file = stack.enter_context(io.BufferedReader(raw, _BUFFER_BYTES))
    head = packed.peek(_HEAD_BYTES)
    if reading.is_lfs_pointer(head):
      raise ValueError(
        f"{path} is a Git LFS pointer in place of the file: run `git lfs pull`"
        " in its repository, or fetch the file itself."
      )
    _check_kind(path, head)
    named = str(path).endswith(".gz")
    if head and named != head.startswith(_GZIP):
      raise records.RecordError(
        f"{path} is not gzipped, but its name ends in .gz: rename it."
        if named
        else f"{path} is gzipped: add .gz to its name."
      )
    try:
      if named:
        # The outer buffer makes reading lines twice as fast.
        file = stack.enter_context(
          io.BufferedReader(gzip.GzipFile(fileobj=packed))
        )
        head = file.peek(_HEAD_BYTES)
        _check_kind(path, head)
        if head.startswith(_GZIP):
          raise records.RecordError(f"{path} is gzipped twice: unpack it once.")
      yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
      raise records.RecordError(
        f"{path}: the gzip data is cut or damaged ({error}); fetch or write"
        " the file again."
      ) from error
    if isinstance(path, UnchangedFile) and not packed.peek(1):
      path.check(raw.digest.hexdigest())
