"""Names the public file that is damaged, and says what to do."""

import contextlib
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator

from mlir_jax.storage import reading

MEND = "Delete the file, then the same command downloads it again."


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


def _unreadable(
  path: str | os.PathLike, error: Exception
) -> reading.UnreadableError:
  return reading.UnreadableError(f"{path} cannot be read: {error}. {MEND}")
