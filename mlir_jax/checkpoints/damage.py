"""Finds damage in checkpoints, with a list of their files.

On a disk, the list (files.json) has the size and the SHA-256 of each file, as
orbax does not see that a bit of an array has changed. On object storage there
is no list: to make and to check it, each checkpoint would cross the network
once more. The storage has a checksum of each object. Orbax cannot read what is
missing or cut there; the error becomes a `DamagedError`. A description has its
own hash.
"""

import json
import os
import pathlib

import jax
from etils import epath

from mlir_jax.checkpoints import listing
from mlir_jax.storage import digests, locations, reading, writing

FILES = "files.json"


class DamagedError(ValueError):
  """A checkpoint is not as it was saved; the message names step and file."""


def write_list(folder: pathlib.Path) -> None:
  """Lists the files in the folders of a checkpoint."""
  files = {
    str(path.relative_to(folder)): (path.stat().st_size, digests.of_file(path))
    for path in sorted(folder.glob("*/**/*"))
    if path.is_file()
  }
  writing.write_aside(str(folder / FILES), json.dumps(files) + "\n")


def find(directory: str | os.PathLike, step: int, part: str = "") -> str | None:
  """Compares a checkpoint with its list of files.

  Files that were checked on this machine are not read again: see
  `digests.check`.

  Args:
    directory: The folder of all checkpoints.
    step: The step of the checkpoint.
    part: A folder in it, "description/"; "" for all.

  Returns:
    The first file that differs, and how. None if all is well, or if there is
    no list.
  """
  if locations.is_url(str(directory)):
    return None
  folder = pathlib.Path(directory) / str(step)
  if not folder.is_dir():
    return f"{folder} is not a folder"
  if not any(folder.iterdir()):
    return f"{folder} is empty"
  if not (folder / FILES).exists():
    return None  # Early checkpoints have no list.
  try:
    listed = reading.read_json(folder / FILES)
    expected = {name: (size, digest) for name, (size, digest) in listed.items()}
  except (ValueError, TypeError, AttributeError) as error:
    return f"{folder / FILES} is not a list of files ({error})"
  hashes = {}
  for name, (size, digest) in expected.items():
    if not name.startswith(part):
      continue
    path = folder / name
    if not path.is_file():
      return f"{path} is missing"
    if path.stat().st_size != size:
      return f"{path} has {path.stat().st_size} bytes, not {size}"
    if size:
      hashes[name] = digest
  try:
    digests.check(folder, hashes, "")
  except reading.UnreadableError as error:
    return str(error).strip().removesuffix(".")
  return None


def check(directory: str | os.PathLike, step: int, part: str = "") -> None:
  """Raises DamagedError if `find` finds damage."""
  if reason := find(directory, step, part):
    raise damaged(directory, step, reason)


def damaged(
  directory: str | os.PathLike, step: int, reason: str, opens: bool = True
) -> DamagedError:
  """Makes the error for a damaged checkpoint.

  Args:
    directory: The folder of all checkpoints.
    step: The step of the checkpoint.
    reason: What is wrong.
    opens: Whether orbax opens the folder with this checkpoint in it.
  """
  older = next(
    (
      other
      for other in reversed(listing.steps(directory))
      if other < step and not find(directory, other)
    ),
    None,
  )
  hint = "No older checkpoint is whole: restore this one from a copy."
  if older is not None:
    hint = (
      f"The checkpoint of step {older} is whole: train goes on from it with"
      f" --from_step={older}; other programs read it with"
      f" --checkpoint={older}"
    )
    if not opens:
      hint += f", once {epath.Path(directory) / str(step)} is moved elsewhere"
    hint += "."
  return DamagedError(
    f"The checkpoint of step {step} is damaged: {reason}. {hint}"
  )


def unreadable(
  directory: str | os.PathLike, step: int, error: Exception
) -> Exception:
  """Makes the error for a checkpoint that orbax could not read."""
  folder = epath.Path(directory) / str(step)
  # With a list, the files were checked before: it is another kind of error.
  if (folder / FILES).exists() or isinstance(
    error, jax.errors.JaxRuntimeError | MemoryError
  ):
    return error
  lines = str(error).splitlines() or [""]
  reason = f"{folder} cannot be read, {type(error).__name__}: {lines[0][:300]}"
  if locations.is_url(str(directory)):
    reason += ". If the storage did not answer, start the same command again"
  return damaged(directory, step, reason)


def move_away(directory: str, after: int) -> None:
  """Moves the damaged checkpoints after a step to another folder.

  Orbax cannot open a folder that has some of them.
  """
  for step in listing.steps(directory):
    if step > after and (reason := find(directory, step)):
      source = epath.Path(directory) / str(step)
      target = epath.Path(f"{directory}-damaged") / str(step)
      print(f"The checkpoint of step {step} is damaged: {reason}.")
      target.parent.mkdir(exist_ok=True)
      if target.is_dir():
        target.rmtree()
      else:
        target.unlink(missing_ok=True)
      source.rename(target)
      print(f"It was moved to {target}.")
