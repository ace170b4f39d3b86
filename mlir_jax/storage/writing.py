"""Writes a file aside, then renames it: it is whole or not there."""

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

from etils import epath

from mlir_jax.storage import locations


@contextlib.contextmanager
def writing_aside(path: str) -> Iterator[BinaryIO]:
  """Opens a file that gets its name once it is whole.

  On a disk it is written beside `path`, as .NAME.RANDOM.tmp, and renamed: of
  several writers the last one's file stays, whole. Nobody can foresee the name,
  and the file is a new one, so that no link leads elsewhere. What a killed
  process leaves has such a name. Object storage keeps no partial file: there
  the content waits in a temporary file.

  Args:
    path: The file, or its URL. Its folder is made if missing. After an error
      it is as it was before.

  Yields:
    The binary file, open for writing; it may seek.

  Raises:
    ValueError: if a folder, a device or a pipe stands at `path`.
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
  folder, name = os.path.split(os.path.abspath(path))
  os.makedirs(folder, exist_ok=True)
  # A part of the name, since names have a longest length.
  aside = os.path.join(folder, f".{name[:40]}.{secrets.token_hex(8)}.tmp")
  try:
    # "x": it must be new. Its mode is as for any file, unlike tempfile's.
    with open(aside, "xb") as file:
      yield file
    os.replace(aside, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.unlink(aside)
    raise


def write_aside(path: str, content: str | bytes) -> None:
  """Writes a file whole or not at all, see `writing_aside`."""
  if isinstance(content, str):
    content = content.encode("utf-8")
  with writing_aside(path) as file:
    file.write(content)
