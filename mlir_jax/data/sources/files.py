"""What all formats share: plain or gzipped files, lines, and text fields."""

import codecs
import contextlib
import gzip
import io
import os
import pathlib
import zlib
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from mlir_jax.data import records

_JSON_TYPES = {
  bool: "a boolean",
  dict: "an object",
  float: "a number",
  int: "a number",
  list: "a list",
  str: "a string",
  type(None): "null",
}


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


def list_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """The files of a folder, by name without ".gz", sorted; no hidden ones.

  Raises:
    ValueError: if a file is there both plain and gzipped.
  """
  found = {}
  for path in sorted(folder.iterdir()):
    if path.name.startswith(".") or not path.is_file():
      continue
    name = path.name.removesuffix(".gz")
    if name in found:
      raise ValueError(
        f"{folder} holds both {name} and {name}.gz; remove one, or the same"
        " text is read twice."
      )
    found[name] = path
  return found


def find_file(folder: pathlib.Path, name: str) -> pathlib.Path:
  """The file of that name, plain or with ".gz"; ValueError if both exist.

  Raises:
    FileNotFoundError: if there is neither.
  """
  found = list_files(folder) if folder.is_dir() else {}
  if name not in found:
    raise FileNotFoundError(f"{folder} holds neither {name} nor {name}.gz.")
  return found[name]


@contextlib.contextmanager
def open_bytes(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """Opens a file for reading bytes, decompressed where it ends in ".gz".

  Raises:
    RecordError: inside the block, where the gzip data is cut or damaged.
  """
  with contextlib.ExitStack() as stack:
    file = stack.enter_context(open(path, "rb"))
    if str(path).endswith(".gz"):
      # Lines are read twice as fast through the outer buffer.
      file = stack.enter_context(io.BufferedReader(gzip.GzipFile(fileobj=file)))
    try:
      yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
      raise records.RecordError(
        f"{path}: the gzip data is cut or damaged ({error}); fetch or write"
        " the file again."
      ) from error


def count_lines(path: str | os.PathLike) -> int:
  """How many lines a file has; a last one need not end in a newline."""
  with open_bytes(path) as file:
    return sum(1 for _ in file)


def read_lines(
  path: str | os.PathLike, bad: records.BadRecords
) -> Iterator[tuple[int, str | None]]:
  """Reads the lines of a UTF-8 file, which only newlines part.

  Args:
    path: The file, plain or gzipped; a byte order mark is passed over.
    bad: Told of lines that are not UTF-8.

  Yields:
    The line's number, from 1, and its text without surrounding white space,
    or None where the line was bad: line-aligned files stay aligned.

  Raises:
    RecordError: for a bad line, if the policy is "error".
  """
  with open_bytes(path) as file:
    for number, line in enumerate(file, start=1):
      if number == 1:
        line = line.removeprefix(codecs.BOM_UTF8)
      try:
        text = line.decode("utf-8").strip()
      except UnicodeDecodeError as error:
        text = None
        bad.report(
          str(path),
          number,
          "text",
          f"is not UTF-8 at the line's byte {error.start + 1}; convert the"
          " file to UTF-8",
        )
      yield number, text


def json_type(value: object) -> str:
  """What a decoded JSON value is, in JSON's words."""
  return _JSON_TYPES[type(value)]


def check_text(value: object, field: str) -> str:
  """The text without surrounding white space, which no text is known by.

  Raises:
    EmptyTextError: if it is null or empty.
    FieldError: if it is no string, or is not Unicode text.
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
  text = value.strip()
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
    FieldError: if the value is no object or lacks the field.
  """
  if not isinstance(record, Mapping):
    raise FieldError(
      where or name,
      f"{'' if where else 'the record '}is {json_type(record)}; give an"
      f' object with "{name}"',
    )
  if name not in record:
    raise FieldError(
      f"{where}.{name}" if where else name,
      f"is missing; the fields are {', '.join(record) or 'none'}",
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
