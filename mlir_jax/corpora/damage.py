"""Names the public file that is damaged, and says what to do."""

import contextlib
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO

from mlir_jax.storage import reading

MEND = "Delete the file, then the same command downloads it again."
_BLOCK_BYTES = 2**20


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
  """Turns what the libraries raise for a damaged file into `UnreadableError`.

  An error of the disk, such as a full one, stays what it is: a new download
  does not mend it.

  Args:
    path: The file, for the message.
  """
  try:
    yield
  except (
    EOFError,
    UnicodeDecodeError,
    lzma.LZMAError,
    tarfile.TarError,
    zlib.error,
  ) as error:
    raise _unreadable(path, error) from error
  except OSError as error:
    # Decompressors raise it without a number.
    if error.errno is not None:
      raise
    raise _unreadable(path, error) from error


@contextlib.contextmanager
def open_tar(
  path: str | os.PathLike, file: IO[bytes] | None = None
) -> Iterator[tarfile.TarFile]:
  """Opens a compressed tar archive to read all of its members in turn.

  Args:
    path: The archive; for the message if `file` is given.
    file: The archive's content.

  Raises:
    UnreadableError: if the archive is damaged; at the end of the block, too.
  """
  with naming(path), tarfile.open(None if file else path, fileobj=file) as tar:
    yield tar
    # For tarfile, a damaged header is the archive's end. So the stream is read
    # to its own end, where its checksum is.
    assert tar.fileobj
    while tar.fileobj.read(_BLOCK_BYTES):
      pass


def _unreadable(
  path: str | os.PathLike, error: Exception
) -> reading.UnreadableError:
  return reading.UnreadableError(f"{path} cannot be read: {error}. {MEND}")
