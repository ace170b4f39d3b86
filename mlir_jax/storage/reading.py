"""Reads files of models, runs and stores, or refuses them in one line.

Their content is not trusted: a file may be cut, damaged, or made to do harm.
All of the package reads such files with these functions. So each fault has one
message, which names the file and says what to do.
"""

import collections
import json
import os
import pathlib
from typing import Any

from etils import epath

RESTORE = "Restore it from a copy, or fetch it again."

_LFS_POINTERS = (
  b"version https://git-lfs.github.com/spec",
  b"version https://hawser.github.com/spec",
)
_NAMES = {dict: "an object", list: "a list", str: "a text"}
# Of nested brackets. Files of ours and of Hugging Face have far fewer.
_MAX_DEPTH = 100


class UnreadableError(ValueError):
  """A file that cannot be read; the message names it and says what to do."""


def read_json(
  path: str | os.PathLike, kind: type = dict, mend: str = RESTORE
) -> Any:
  """Reads a JSON file.

  Args:
    path: The file, on a disk or on object storage.
    kind: What it must hold: `dict` or `list`.
    mend: What to do about a bad file, a sentence.

  Raises:
    UnreadableError: if it is missing, empty, cut, not a file, not UTF-8, not
      JSON or too deep. Also if it holds another kind, a number with thousands
      of digits, half a surrogate pair, or a key twice in one object.
  """
  return parse_json(read_bytes(path, mend), str(path), kind, mend)


def parse_json(
  content: bytes, where: str, kind: type = dict, mend: str = RESTORE
) -> Any:
  """Parses JSON text in UTF-8; see `read_json`.

  Args:
    content: The text.
    where: Its file, or its file and line, for the message.
    kind: What it must hold: `dict` or `list`.
    mend: What to do about a bad text, a sentence.
  """
  try:
    value = json.loads(content.decode("utf-8"), object_pairs_hook=_object)
    if _deeper_than(value, _MAX_DEPTH):
      raise RecursionError
    json.dumps(value, ensure_ascii=False).encode("utf-8")
  except UnicodeDecodeError as error:
    problem = f"byte {error.start + 1} is not UTF-8"
  except UnicodeEncodeError:
    problem = "it holds half of a surrogate pair, which is not a character"
  except json.JSONDecodeError as error:
    problem = (
      f"it is not JSON (line {error.lineno}, column {error.colno}: {error.msg})"
    )
  except RecursionError:
    problem = "its brackets are nested too deeply"
  except _RepeatedKeyError as error:
    problem = f"the key {error} is there twice in one object"
  except ValueError:  # Python converts up to 4,300 digits.
    problem = "it holds a number with too many digits"
  else:
    if isinstance(value, kind):
      return value
    found = _NAMES.get(type(value), f"the value {value!r}")
    problem = f"it holds {found}, not {_NAMES[kind]}"
  raise UnreadableError(f"{where} cannot be read: {problem}. {mend}")


def read_json_lines(
  path: str | os.PathLike, cut: bool = False
) -> list[dict[str, Any]]:
  """Reads the JSON objects of a file to which a run adds lines.

  Each object has its "step", an integer. A missing file has no objects.

  Args:
    path: The file, on a disk or on object storage.
    cut: Whether a last line without a newline may be damaged, as after a kill.
      It is then left out.

  Raises:
    UnreadableError: if another line is damaged; it names the file and the line.
  """
  path = epath.Path(path)
  if not path.exists():
    return []
  mend = "Delete this line: only this record of the run is lost."
  *lines, rest = path.read_bytes().split(b"\n")
  records = []
  for number, line in enumerate([*lines, *[rest] * bool(rest)], start=1):
    where = f"{path}:{number}"
    try:
      record = parse_json(line, where, mend=mend)
      if type(record.get("step")) is not int:
        raise UnreadableError(
          f"{where}: step is {record.get('step')!r}. {mend}"
        )
    except UnreadableError:
      if cut and number > len(lines):
        break
      raise
    records.append(record)
  return records


class _RepeatedKeyError(ValueError):
  pass


def _object(pairs: list[tuple[str, Any]]) -> dict:
  content = dict(pairs)
  if len(content) < len(pairs):
    counts = collections.Counter(key for key, _ in pairs)
    raise _RepeatedKeyError(repr(next(k for k in counts if counts[k] > 1)))
  return content


def _deeper_than(value: Any, levels: int) -> bool:
  if not isinstance(value, dict | list):
    return False
  inner = value.values() if isinstance(value, dict) else value
  return not levels or any(_deeper_than(each, levels - 1) for each in inner)


def read_bytes(path: str | os.PathLike, mend: str = RESTORE) -> bytes:
  """Reads a file; UnreadableError if `check_file` refuses it."""
  check_file(path, mend)
  try:
    return epath.Path(path).read_bytes()
  except OSError as error:
    raise UnreadableError(f"{path} cannot be read: {error}. {mend}") from error


def is_lfs_pointer(first_bytes: bytes) -> bool:
  """Whether a file with these first 64 bytes is a Git LFS pointer.

  A clone without Git LFS leaves pointers in place of large files.
  """
  return first_bytes.startswith(_LFS_POINTERS)


def check_file(path: str | os.PathLike, mend: str = RESTORE) -> None:
  """Checks that a path is a file with content.

  Args:
    path: The file, on a disk or on object storage.
    mend: What to do about a bad file, a sentence.

  Raises:
    UnreadableError: if it is missing, a folder, a pipe or a device, empty, or
      a Git LFS pointer.
  """
  path = epath.Path(path)
  try:
    if path.is_dir():
      problem = "it is a folder, not a file"
    elif not path.exists():
      problem = "it does not exist"
    # For `epath` a pipe is a file, and reading it would wait for ever.
    elif "://" not in str(path) and not os.path.isfile(path):
      problem = "it is a pipe or a device, not a file"
    else:
      with path.open("rb") as file:
        start = file.read(64)
      if is_lfs_pointer(start):
        problem = "it is a Git LFS pointer: the file itself was not fetched"
        mend = 'Run "git lfs pull" in its folder.'
      elif start:
        return
      else:
        problem = "it is empty"
  except (OSError, ValueError) as error:  # ValueError: a NUL in the path.
    raise UnreadableError(f"{path} cannot be read: {error}. {mend}") from error
  raise UnreadableError(f"{path} cannot be read: {problem}. {mend}")


def inside(
  folder: pathlib.Path, name: Any, said_by: pathlib.Path
) -> pathlib.Path:
  """Returns the path of a file that another file of a model's folder names.

  Args:
    folder: The folder; the name is relative to it.
    name: The name, as it was read.
    said_by: The file that holds the name, for the message.

  Raises:
    UnreadableError: if it is not a relative path that stays in the folder.
      In the cache of the Hugging Face hub, links may lead to the files of the
      same model outside of the folder.
  """
  problem = ""
  if not isinstance(name, str):
    problem = "which is not a path"
  elif "\0" in name or "\\" in name:
    problem = "which is not a path in the folder"
  elif pathlib.PurePosixPath(name).is_absolute() or ".." in name.split("/"):
    problem = "which leaves the folder"
  else:
    path = folder / name
    target = path.resolve()
    if not any(target.is_relative_to(root) for root in _roots(folder)):
      problem = f"a link that leaves the folder, to {target}"
  if problem:
    raise UnreadableError(
      f"{said_by} names {name!r}, {problem}. Put the file into the folder, and"
      " name it by its path there."
    )
  return path


def _roots(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns where files of a folder may be: in it, or in its hub cache."""
  whole = folder.absolute()
  return [
    folder.resolve(),
    # In the hub's cache, MODEL/snapshots/COMMIT/... are links to MODEL/blobs/.
    *(
      (part.parent.parent / "blobs").resolve()
      for part in (whole, *whole.parents)
      if part.parent.name == "snapshots"
    ),
  ]
