"""Brings files to a folder, and keeps their checksums.

The folder's `checksums.json` has the SHA-256 of each file, from its first
download. A later download must have the same, and a file that is there already,
too. Delete a file's entry to accept another content.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
from collections.abc import Iterable, Iterator

from mlir_jax.corpora import transfer
from mlir_jax.storage import digests, reading, writing

CHECKSUMS = "checksums.json"


@dataclasses.dataclass(frozen=True)
class File:
  """A public file.

  Attributes:
    url: Its address.
    path: Where it is put, relative to the folder.
    size: In bytes; None if it is not known.
    sha256: "" if it is not known.
  """

  url: str
  path: str
  size: int | None = None
  sha256: str = ""


def state(file: File, folder: pathlib.Path) -> str:
  """Says in a few words what is there of a file: for --dry_run."""
  target = folder / file.path
  if target.exists():
    return f"here, {format_size(target.stat().st_size)}"
  part = _part(target)
  if part.exists():
    return f"begun, {format_size(part.stat().st_size)} are here"
  return "not here"


def format_size(size: int | None) -> str:
  """Returns a size in bytes as "1.5 MB"; "size unknown" for None."""
  if size is None:
    return "size unknown"
  amount, unit = float(size), "B"
  for larger in ("kB", "MB", "GB", "TB"):
    if amount < 1000:
      break
    amount, unit = amount / 1000, larger
  return f"{amount:.0f} {unit}" if amount >= 10 else f"{amount:.2g} {unit}"


def fetch(files: Iterable[File], folder: pathlib.Path) -> dict[str, str]:
  """Downloads the files that are not there, and checks those that are.

  Args:
    files: Their paths differ.
    folder: Where they are put. A file that was put there by hand is checked as
      a downloaded one is.

  Returns:
    The SHA-256 of each file, by its path.

  Raises:
    DownloadError: if a file cannot be downloaded, or is not the file of the
      first download.
    UnreadableError: if a file that is there has changed, or `CHECKSUMS` is
      damaged.
  """
  fetched = {}
  for file in files:
    target = folder / file.path
    known = _read(folder).get(file.path, {})
    expected = file.sha256 or known.get("sha256", "")
    if target.exists():
      found = _check(file, target, expected, folder)
    else:
      found = _download(file, target, expected, folder)
    if known.get("sha256") != found:
      entry = {
        "url": file.url,
        "bytes": target.stat().st_size,
        "sha256": found,
      }
      _write(folder, file.path, entry)
    fetched[file.path] = found
  return fetched


def _check(
  file: File, target: pathlib.Path, expected: str, folder: pathlib.Path
) -> str:
  """Checks a file that is there; returns its SHA-256."""
  if not expected:  # It was put there by hand.
    reading.check_file(target)
    if problem := transfer.find_problem(target, target):
      raise reading.UnreadableError(
        f"{target} is {problem}. Delete it, then the same command downloads it."
      )
    return digests.of_file(target)
  mend = "Delete it, then the same command downloads it again."
  if not file.sha256:
    mend += (
      f" If the change is right, delete its entry in {folder / CHECKSUMS}"
      " instead."
    )
  digests.check(folder, {file.path: expected}, mend)
  return expected


def _download(
  file: File, target: pathlib.Path, expected: str, folder: pathlib.Path
) -> str:
  """Downloads a file; returns its SHA-256."""
  part = _part(target)
  with transfer.alone(part) as opened:
    if target.exists():  # Another process was faster.
      transfer.discard(part)
      return _check(file, target, expected, folder)
    transfer.download(file.url, opened, part, target)
    found = digests.of_file(part)
    if expected and found != expected:
      transfer.discard(part)
      raise transfer.DownloadError(
        f"{file.url}: the server sends another file: its SHA-256 is {found},"
        f" but {'its publisher lists' if file.sha256 else 'it was before'}"
        f" {expected}. Start the same command again, in case the transfer was"
        f" at fault. If there is a new version, delete {_accept(file, folder)}"
      )
    os.replace(part, target)
    transfer.discard(part)
  return found


def _accept(file: File, folder: pathlib.Path) -> str:
  """Says what to delete so that a new version is taken."""
  checksums = folder / CHECKSUMS
  if not file.sha256:
    return f"the entry {file.path!r} in {checksums}."
  # The list of files is next to them.
  where = pathlib.PurePosixPath(file.path).parent
  return f"{folder / where}, and the entries of {where}/ in {checksums}."


def _part(target: pathlib.Path) -> pathlib.Path:
  return target.with_name(f".{target.name}.part")


def _read(folder: pathlib.Path) -> dict[str, dict]:
  path = folder / CHECKSUMS
  if not path.exists():
    return {}
  found = reading.read_json(
    path, mend="Delete it: the checksums of the files are then taken anew."
  )
  for name, entry in found.items():
    if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
      raise reading.UnreadableError(
        f"{path}: the entry {name!r} has no sha256, a text. Delete the entry:"
        " the checksum of the file is then taken anew."
      )
  return found


def _write(folder: pathlib.Path, name: str, entry: dict) -> None:
  with _turn(folder):
    entries = _read(folder) | {name: entry}
    text = json.dumps(dict(sorted(entries.items())), indent=2) + "\n"
    writing.write_aside(str(folder / CHECKSUMS), text)


@contextlib.contextmanager
def _turn(folder: pathlib.Path) -> Iterator[None]:
  """Within this context, no other process adds a checksum."""
  with open(folder / f".{CHECKSUMS}.lock", "w") as lock:
    # Without locks, two processes at once may lose an entry: it is made again.
    with contextlib.suppress(OSError):
      fcntl.flock(lock, fcntl.LOCK_EX)
    yield
