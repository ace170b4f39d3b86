"""Keeps what a mining run has computed, so that it goes on after a kill.

Each portion is a file of its own, written aside and then renamed. Portions do
not depend on each other, so a resumed run makes the bytes that a run without a
kill makes, on the same kind of machine.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from mlir_jax.storage import reading, writing

_SETTINGS = "settings.json"
_LOCK = "lock"


class Progress:
  """The folder of the portions.

  Attributes:
    path: The folder. It is next to the output, with a hidden name.
    kept: The number of portions that were there.
  """

  def __init__(self, path: pathlib.Path):
    self.path = path
    self.kept = 0

  def arrays(
    self, name: str, make: Callable[[], Mapping[str, np.ndarray]]
  ) -> dict[str, np.ndarray]:
    """Returns the arrays of a portion; makes and stores them if necessary.

    Args:
      name: The portion's name.
      make: Returns the arrays by their names.
    """
    path = self.path / f"{name}.npz"
    # A disk may lose the end of a file when its machine loses power.
    with contextlib.suppress(
      FileNotFoundError, ValueError, EOFError, zipfile.BadZipFile
    ):
      with np.load(path, allow_pickle=False) as stored:
        found = dict(stored)
      self.kept += 1
      return found
    made = dict(make())
    with writing.writing_aside(str(path)) as file:
      np.savez(file, allow_pickle=False, **made)
    return made

  def new_folder(self, name: str) -> pathlib.Path:
    """Makes an empty folder; what a killed run has left there is removed."""
    folder = self.path / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


@contextlib.contextmanager
def opened(
  output: pathlib.Path, settings: Mapping[str, Any]
) -> Iterator[Progress]:
  """Opens the folder of the portions; removes it after the block.

  It stays after an error or a kill.

  Args:
    output: The file or the folder that is mined.
    settings: All that decides the portions. JSON can hold it.

  Raises:
    ValueError: if another process mines the same output, or the folder has the
      portions of other settings.
  """
  folder = output.with_name(f".{output.name}.mining")
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / _LOCK, "w", encoding="utf-8") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise ValueError(
        f"Another process mines {output}: wait until it has ended, or give"
        " another --output."
      ) from None
    except OSError:
      pass  # This file system has no locks.
    _check_settings(folder, output, settings)
    yield Progress(folder)
    shutil.rmtree(folder)


def _check_settings(
  folder: pathlib.Path, output: pathlib.Path, settings: Mapping[str, Any]
) -> None:
  path = folder / _SETTINGS
  if not path.exists():
    writing.write_aside(str(path), json.dumps(dict(settings), indent=1))
    return
  before = reading.read_json(
    path, mend=f"Delete the folder {folder} to start anew."
  )
  different = [
    name
    for name in sorted({*before, *settings})
    if json.dumps(before.get(name)) != json.dumps(settings.get(name))
  ]
  if different:
    raise ValueError(
      f"{folder} holds the portions of an unfinished run for --output={output}"
      f" with other settings or files ({', '.join(different)}). Repeat the"
      " settings to continue it, or delete the folder to start anew."
    )


def publish(made: pathlib.Path, output: pathlib.Path) -> None:
  """Gives a whole file or folder its name.

  Raises:
    ValueError: if something has got this name in the meantime.
  """
  if not is_free(output):
    raise ValueError(f"{output} has been written by another program.")
  os.rename(made, output)


def is_free(output: pathlib.Path) -> bool:
  """Returns whether nothing, or an empty folder, has a path."""
  if output.is_dir():
    return not any(output.iterdir())
  return not os.path.lexists(output)
