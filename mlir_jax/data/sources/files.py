r"""What all formats share: files, lines, JSON values, and text fields.

The rules are the same in every reader:

- A file is plain UTF-8 or gzip, and its name says which. A Git LFS pointer,
  another archive or another encoding is refused.
- "\n" and "\r\n" end a line. A carriage return elsewhere is a bad line, as it
  ends a line for some programs only; so is a NUL. Other control characters
  and separators are white space within a line. A byte order mark before a
  line is passed over: it stands inside a file that was joined from several.
- A text without a visible character is empty. A blank line is not a record.
"""

import codecs
import collections
import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import os
import pathlib
import re
import reprlib
import stat
import unicodedata
import zlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, BinaryIO

from mlir_jax import stored
from mlir_jax.data import records

_BUFFER_BYTES = 1 << 20
_HEAD_BYTES = 512

_GZIP = b"\x1f\x8b"
# What a file is by its first bytes, and what to do.
_OTHER_KINDS = (
  (re.compile(rb"PK\x03\x04"), "a zip archive; unpack it"),
  (re.compile(rb"\xfd7zXZ\0"), "an xz file; unpack it"),
  (re.compile(rb"BZh[1-9]1AY&SY"), "a bzip2 file; unpack it"),
  (re.compile(rb"\x28\xb5\x2f\xfd"), "a zstd file; unpack it"),
  (re.compile(rb"7z\xbc\xaf\x27\x1c"), "a 7z archive; unpack it"),
  (re.compile(rb"\xff\xfe|\xfe\xff"), "UTF-16 text; convert it to UTF-8"),
)

# What stands beside the files of a corpus: its papers, OPUS's alignments.
_COMPANION = re.compile(
  r"(README|LICEN[CS]E|COPYING|NOTICE|CITATION).*|.+\.(ids|xml)(\.gz)?",
  re.IGNORECASE,
)

# Controls, line separators, and bytes that are not UTF-8: in a message such a
# name would part lines, or steer the terminal.
_UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

# Format characters, controls, spaces and separators.
_INVISIBLE_CATEGORIES = frozenset(("Cc", "Cf", "Zl", "Zp", "Zs"))
# Characters of other categories that show nothing, as ranges: Unicode's
# Default_Ignorable_Code_Point (Hangul fillers, Khmer inherent vowels,
# variation selectors), and the blank of Braille.
_INVISIBLE = re.compile(
  "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f"
  "\uffa0\U000e0000-\U000e0fff]"
)

_JSON_TYPES = {
  bool: "a boolean",
  dict: "an object",
  float: "a number",
  int: "a number",
  list: "a list",
  str: "a string",
  type(None): "null",
}

HOLDS_NUL = (
  "holds a NUL, as UTF-16 and binary files do; convert the file to UTF-8 text"
)

_short = reprlib.Repr()
_short.maxstring = 60


class FieldError(ValueError):
  """A field that cannot be used; its reader adds the file and the line.

  Attributes:
    field: The field, in the file's own spelling.
    problem: What is wrong and what to do, as one clause.
  """

  def __init__(self, field: str, problem: str):
    super().__init__(f"{field}: {problem}")
    self.field = field
    self.problem = problem


class EmptyTextError(FieldError):
  """A field that holds no text: null, or nothing that can be seen."""


@dataclasses.dataclass(frozen=True)
class Unusable:
  """A JSON value that has no meaning.

  It takes the value's place: a record is refused for the fields that are read,
  by their names, and the next record can be read.

  Attributes:
    kind: What it is, behind "is".
  """

  kind: str


class UnchangedFile(os.PathLike):
  """A file that must hold the same bytes whenever it is read.

  Readers take it as a path. `open_bytes` hashes what it reads of it, and
  compares when the file was read to its end.
  """

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._sha256 = ""

  def __fspath__(self) -> str:
    return os.fspath(self._path)

  def __str__(self) -> str:
    return str(self._path)

  def check(self, sha256: str) -> None:
    """Keeps the first hash; refuses another one later.

    Raises:
      RecordError: if the file holds other bytes than before.
    """
    self._sha256 = self._sha256 or sha256
    if sha256 != self._sha256:
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
  """Passes a file's bytes on and hashes them."""

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
  """Whether a path is a folder; if not, it is a file.

  Raises:
    ValueError: if it is neither: a link that leads nowhere, a pipe, a socket,
      a device; or if its name cannot be printed.
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
  """Whether a file of this name comes with a corpus and is not read."""
  return bool(_COMPANION.fullmatch(name))


def list_files(
  folder: pathlib.Path,
  passed_over: list[pathlib.Path] | None = None,
  folders: Collection[str] = (),
) -> dict[str, pathlib.Path]:
  """The files of a folder, by name without ".gz", sorted.

  Args:
    folder: The folder.
    passed_over: Gets the hidden files and folders, which are left out.
    folders: Names of folders that may be there; they are left out.

  Raises:
    ValueError: for what is not a file, or if a file is there both plain and
      gzipped.
  """
  found = {}
  for path in sorted(folder.iterdir()):
    if path.name.startswith("."):
      if passed_over is not None:
        passed_over.append(path)
      continue
    if is_folder(path) != (path.name in folders):
      raise ValueError(
        f"{path} should be a folder; it is a file."
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
  """Refuses a file that is not text by its first bytes.

  Raises:
    RecordError: if it is an archive, or text in another encoding.
  """
  for pattern, kind in _OTHER_KINDS:
    if pattern.match(head):
      raise records.RecordError(f"{path} is {kind}.")


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
  """Adds the file to an error of its disk, which does not name it by itself."""
  try:
    yield
  except OSError as error:
    if error.errno is not None and error.filename is None:
      error.filename = str(path)
    raise


@contextlib.contextmanager
def open_bytes(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """Opens a file for reading bytes, decompressed where it ends in ".gz".

  Args:
    path: The file. An `UnchangedFile` is compared with its earlier readings at
      the end of the block, where the block has read to the file's end.

  Raises:
    RecordError: if the file is not what its name says, or is not UTF-8 text
      by its first bytes; inside the block, where the gzip data is cut or
      damaged; after it, if the file has changed.
    ValueError: if it is a Git LFS pointer.
    OSError: if it cannot be read; it names the file.
  """
  with contextlib.ExitStack() as stack:
    stack.enter_context(naming(path))
    raw: Any = stack.enter_context(open(path, "rb", buffering=0))
    if isinstance(path, UnchangedFile):
      raw = stack.enter_context(_HashedFile(raw))
    packed = file = stack.enter_context(io.BufferedReader(raw, _BUFFER_BYTES))
    head = packed.peek(_HEAD_BYTES)
    if stored.is_lfs_pointer(head):
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
        # Lines are read twice as fast through the outer buffer.
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


def count_lines(path: str | os.PathLike) -> int:
  """The number of the last line that is not blank; 0 without one."""
  with open_bytes(path) as file:
    numbers = (
      number
      for number, line in enumerate(file, start=1)
      if strip(line.decode("utf-8", "replace"))
    )
    return max(numbers, default=0)


def parse_line(line: bytes) -> str:
  """A line without surrounding white space; see `read_lines`.

  Raises:
    FieldError: if it is not a line of UTF-8 text.
  """
  if b"\0" in line:
    raise FieldError("text", HOLDS_NUL)
  line = line.removeprefix(codecs.BOM_UTF8)
  try:
    text = strip(line.decode("utf-8"))
  except UnicodeDecodeError as error:
    raise FieldError(
      "text",
      f"is not UTF-8 at the line's byte {error.start + 1}; convert the file to"
      " UTF-8",
    ) from None
  if "\r" in text:
    raise FieldError(
      "text",
      "holds a carriage return that is not at the line's end; end lines with a"
      " newline (`mac2unix` converts a file)",
    )
  return text


def parse_lines(
  path: str | os.PathLike,
) -> Iterator[tuple[int, str | FieldError]]:
  """`read_lines`, where a bad line is its error."""
  with open_bytes(path) as file:
    for number, line in enumerate(file, start=1):
      try:
        parsed = parse_line(line)
      except FieldError as error:
        parsed = error
      yield number, parsed


def read_lines(
  path: str | os.PathLike, bad: records.BadRecords
) -> Iterator[tuple[int, str | None]]:
  r"""Reads the lines of a UTF-8 file, which end in "\n" or "\r\n".

  Args:
    path: The file, plain or gzipped; byte order marks before lines are passed
      over.
    bad: Receives lines that are not UTF-8, or hold a NUL or a carriage return
      before their end.

  Yields:
    The line's number, from 1, and its text without surrounding white space
    ("" where no character is visible), or None where the line was bad:
    line-aligned files stay aligned.

  Raises:
    RecordError: for a bad line, if the policy is "error"; otherwise as
      `open_bytes`.
  """
  for number, parsed in parse_lines(path):
    if isinstance(parsed, FieldError):
      bad.report(str(path), number, parsed.field, parsed.problem)
      parsed = None
    yield number, parsed


def strip(text: str) -> str:
  """The text without surrounding white space; "" if nothing in it is visible.

  Invisible characters within a text stay: Persian is spelled with a
  zero-width non-joiner.
  """
  text = text.strip()
  # The first character is visible in most texts. A damaged file may hold
  # millions of invisible ones in a line: each kind is looked at once.
  if any(map(_is_visible, text[:1])) or any(map(_is_visible, set(text))):
    return text
  return ""


def _is_visible(character: str) -> bool:
  return unicodedata.category(
    character
  ) not in _INVISIBLE_CATEGORIES and not _INVISIBLE.match(character)


def _json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Unusable:
  """A JSON object; duplicate keys have no meaning (RFC 8259, section 4)."""
  value = dict(pairs)
  if len(value) == len(pairs):
    return value
  counts = collections.Counter(name for name, _ in pairs)
  twice = next(name for name, count in counts.items() if count > 1)
  return Unusable(f"an object that has the field {show(twice)} twice")


def _json_whole_number(digits: str) -> int | Unusable:
  try:
    return int(digits)
  except ValueError:  # Python reads 4,300 digits.
    return Unusable(f"a number of {len(digits):,} digits")


# For `raw_decode`; `parse_json` decodes a whole text.
JSON_DECODER = json.JSONDecoder(
  object_pairs_hook=_json_object,
  parse_int=_json_whole_number,
  parse_constant=lambda name: Unusable(f"{name}, which is not JSON"),
)
NESTED_TOO_DEEP = "is nested too deep to be a record"


def parse_json(text: str) -> Any:
  """The value of a line of JSON; parts of it may be `Unusable`.

  Raises:
    FieldError: if it is not JSON.
  """
  try:
    return JSON_DECODER.decode(text)
  except json.JSONDecodeError as error:
    raise FieldError(
      "record",
      f"is not JSON: {error.msg} at character {error.pos + 1}; give one object"
      " a line",
    ) from None
  except RecursionError:
    raise FieldError("record", NESTED_TOO_DEEP) from None


def json_type(value: object) -> str:
  """What a decoded JSON value is, in JSON's words."""
  if isinstance(value, Unusable):
    return value.kind
  return _JSON_TYPES[type(value)]


def show(text: str) -> str:
  """A text in quotes for a message: shortened, without control characters."""
  return _short.repr(text)


def check_text(value: object, field: str) -> str:
  """The text without surrounding white space, which no text is known by.

  Raises:
    EmptyTextError: if it is null or empty.
    FieldError: if it is not a string, or is not Unicode text.
  """
  if not isinstance(value, str):
    error = EmptyTextError if value is None else FieldError
    raise error(field, f"is {json_type(value)}; give a string")
  try:
    value.encode("utf-8")
  except UnicodeEncodeError as error:
    raise FieldError(
      field,
      f"is not Unicode text at character {error.start + 1}: bytes that are"
      " not UTF-8, or half of a surrogate pair; repair or remove it",
    ) from None
  if "\0" in value:
    raise FieldError(field, "holds a NUL character; repair or remove it")
  text = strip(value)
  if not text:
    raise EmptyTextError(field, "is empty; give its text or remove the record")
  return text


def get_field(record: object, name: str, where: str = "") -> object:
  """A field of a JSON object.

  Args:
    record: The decoded JSON value, which should be an object.
    name: The field's name.
    where: Path to the object, for messages, e.g. "positive_ctxs[0]".

  Raises:
    FieldError: if the value is not an object or lacks the field.
  """
  if isinstance(record, Unusable):
    raise FieldError(
      where or name,
      f"{'' if where else 'the record '}is {record.kind}; repair it",
    )
  if not isinstance(record, Mapping):
    raise FieldError(
      where or name,
      f"{'' if where else 'the record '}is {json_type(record)}; give an"
      f' object with "{name}"',
    )
  if name not in record:
    shown = [field if len(field) < 40 else show(field) for field in record]
    raise FieldError(
      f"{where}.{name}" if where else name,
      f"is missing; the fields are {', '.join(shown[:12]) or 'none'}"
      f"{', …' if shown[12:] else ''}",
    )
  return record[name]


def get_text(record: object, name: str, where: str = "") -> str:
  """A field of a JSON object as text; see `get_field` and `check_text`."""
  value = get_field(record, name, where)
  return check_text(value, f"{where}.{name}" if where else name)


def check_id(value: object, field: str) -> str:
  """An id as a string; numbers become their digits.

  Raises:
    FieldError: if it is neither a string nor a whole number, or is empty.
  """
  return check_text(str(value) if type(value) is int else value, field)
