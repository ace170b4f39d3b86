"""Copies files and folders between object storage and this machine."""

import contextlib
import fnmatch
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence

from etils import epath

from mlir_jax.storage import locations, writing

# It names the files of a folder that is being uploaded.
_UPLOADING = ".uploading"


def local_copy(folder: str, local_dir: str = "") -> str:
  """Returns where this machine has the local copy of the run's folder.

  The local copy holds the files that must be on a disk.

  Args:
    folder: The run's folder, from `locations.absolute`.
    local_dir: The local copy of a folder on object storage; "" for a folder in
      the user's cache, which is named by the hash of the URL.

  Returns:
    An absolute path. If the run's folder is on a disk, it is that folder.
  """
  if not locations.is_url(folder):
    return folder
  if local_dir:
    return locations.absolute(local_dir)
  name = hashlib.sha256(folder.encode()).hexdigest()[:16]
  return os.path.join(locations.user_cache(), name)


def fetch(folder: str, local: str, name: str) -> None:
  """Copies a file of the run's folder to the local copy.

  If the file is missing there, it is removed here.
  """
  theirs, ours = epath.Path(folder) / name, epath.Path(local) / name
  if folder == local:
    return
  if not theirs.exists():
    ours.unlink(missing_ok=True)
    return
  if ours.exists() and ours.read_bytes() == theirs.read_bytes():
    return
  with writing.writing_aside(str(ours)) as file, theirs.open("rb") as source:
    shutil.copyfileobj(source, file)


def fetch_folder(folder: str, local: str, name: str) -> None:
  """Copies the files of a folder to the local copy, all or none.

  Folders in it are not copied: `fetch` copies their files one by one. Another
  process of this machine may have copied it in the meantime.
  """
  with (
    contextlib.suppress(writing.TakenError),
    writing.folder_aside(f"{local}/{name}") as aside,
  ):
    for path in (epath.Path(folder) / name).iterdir():
      if not path.is_dir():
        path.copy(epath.Path(aside) / path.name)


def copy_folder(url: str, patterns: Sequence[str]) -> str:
  """Copies a folder from object storage, in which others wrote the files.

  A file that was copied before and has not changed is not copied again. A file
  that is gone there is removed here.

  Args:
    url: The folder's URL.
    patterns: Patterns of the files to copy, for their paths in the folder; a *
      matches a / too.

  Returns:
    The copy on this machine.

  Raises:
    ValueError: if there is no such folder, or a package is missing.
  """
  locations.check_packages(url)
  folder, local = (
    epath.Path(url),
    epath.Path(local_copy(locations.absolute(url))),
  )
  if not folder.is_dir():
    raise ValueError(f"There is no folder {url}.")
  theirs = set(_find(folder, patterns))
  for name in sorted(theirs):
    path, ours = folder / name, local / name
    found = path.stat()
    # Not every storage says when an object was written. Then it is 0.
    state = (found.length, found.mtime)
    if found.mtime and ours.exists() and state == _state(ours):
      continue
    with writing.writing_aside(str(ours)) as file, path.open("rb") as source:
      shutil.copyfileobj(source, file)
    os.utime(ours, (found.mtime, found.mtime))
  for name in set(_find(local, patterns)) - theirs:
    # Another process may be writing a hidden file aside.
    if not name.rpartition("/")[2].startswith("."):
      (local / name).unlink(missing_ok=True)
  return str(local)


def _state(path: epath.Path) -> tuple[int, int]:
  """Returns the size in bytes and the time in seconds of a file on a disk."""
  found = os.stat(path)
  return found.st_size, int(found.st_mtime)


def _find(
  folder: epath.Path, patterns: Sequence[str], prefix: str = ""
) -> Iterator[str]:
  """Yields the paths of files, relative to the folder, that match a pattern."""
  if not folder.exists():
    return
  for path in folder.iterdir():
    name = f"{prefix}{path.name}"
    if path.is_dir():
      yield from _find(path, patterns, f"{name}/")
    elif any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
      yield name


def check_free(url: str, setting: str) -> None:
  """Refuses a folder on object storage that holds something.

  Files that a killed `upload_folder` has left there do not count: the next one
  removes them.

  Args:
    url: The folder's URL.
    setting: The flag with its value, for the message.

  Raises:
    ValueError: if something is there.
  """
  if set(_find(epath.Path(url), ["*"])) - _left_there(url):
    raise ValueError(f"{setting} exists: give another folder.")


def _left_there(url: str) -> set[str]:
  """Returns the names that an upload which has not ended writes."""
  marker = epath.Path(url) / _UPLOADING
  if not marker.exists():
    return set()
  return {_UPLOADING, *marker.read_text().splitlines()}


def upload_folder(local: str, url: str, last: str) -> None:
  """Copies a new folder from a disk to object storage.

  Until it ends, a file there names all that it writes.

  Args:
    local: The folder.
    url: Its URL. After an error, nothing is left there.
    last: The name of the files without which the folder is not valid. They are
      written last.
  """
  names = sorted(_find(epath.Path(local), ["*"]))
  names.sort(key=lambda name: name.rpartition("/")[2] == last)
  marker = epath.Path(url) / _UPLOADING
  try:
    for name in _left_there(url) - {_UPLOADING}:
      epath.Path(f"{url}/{name}").unlink(missing_ok=True)
    marker.write_text("".join(f"{name}\n" for name in names))
    for name in names:
      with (
        open(f"{local}/{name}", "rb") as source,
        epath.Path(f"{url}/{name}").open("wb") as target,
      ):
        shutil.copyfileobj(source, target)
    marker.unlink()
  except BaseException:
    for name in (*names, _UPLOADING):
      epath.Path(f"{url}/{name}").unlink(missing_ok=True)
    raise


def upload(folder: str, local: str, *names: str) -> None:
  """Copies files of the local copy to the run's folder, in this order."""
  if folder != local:
    for name in names:
      writing.write_aside(
        f"{folder}/{name}", (epath.Path(local) / name).read_bytes()
      )
