r"""Reads the lines of a text file.

- "\n" and "\r\n" end a line. A carriage return elsewhere makes a line bad,
  because only some programs end a line there. A NUL makes a line bad, too.
- Other control characters and separators are white space within a line.
- A byte order mark before a line is ignored. Where several files were joined
  into one, there may be one before any line.
- A line without a visible character is blank.
"""

import codecs
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

from mlir_jax.data import records
from mlir_jax.data.sources import files, record_fields

_Record = TypeVar("_Record")

HOLDS_NUL = (
  "holds a NUL, as UTF-16 and binary files do; convert the file to UTF-8 text"
)


def count_lines(path: str | os.PathLike) -> int:
  """Returns the number of the last line that is not blank; 0 if none is."""
  with files.open_bytes(path) as file:
    numbers = (
      number
      for number, line in enumerate(file, start=1)
      if record_fields.strip(line.decode("utf-8", "replace"))
    )
    return max(numbers, default=0)


def parse_line(line: bytes) -> str:
  """Decodes a line and strips white space around it; "" if it is blank.

  Raises:
    FieldError: if the line is bad.
  """
  if b"\0" in line:
    raise record_fields.FieldError("text", HOLDS_NUL)
  line = line.removeprefix(codecs.BOM_UTF8)
  try:
    text = record_fields.strip(line.decode("utf-8"))
  except UnicodeDecodeError as error:
    raise record_fields.FieldError(
      "text",
      f"is not UTF-8 at the line's byte {error.start + 1}; convert the file to"
      " UTF-8",
    ) from None
  if "\r" in text:
    raise record_fields.FieldError(
      "text",
      "holds a carriage return that is not at the line's end; end lines with a"
      " newline (`mac2unix` converts a file)",
    )
  return text


def parse_lines(
  path: str | os.PathLike,
) -> Iterator[tuple[int, str | record_fields.FieldError]]:
  """Like `read_lines`, but yields the error of a bad line."""
  with files.open_bytes(path) as file:
    for number, line in enumerate(file, start=1):
      try:
        parsed = parse_line(line)
      except record_fields.FieldError as error:
        parsed = error
      yield number, parsed


def read_lines(
  path: str | os.PathLike, bad_records: records.BadRecords
) -> Iterator[tuple[int, str | None]]:
  """Reads the lines of a UTF-8 file.

  Args:
    path: The file, plain or gzipped.
    bad_records: Receives bad lines.

  Yields:
    The line's number, from 1, and its text without white space around it: ""
    for a blank line, None for a bad one. Every line is yielded, so that
    line-aligned files stay aligned.

  Raises:
    RecordError: for a bad line, if the policy is "error"; and as
      `files.open_bytes` does.
  """
  for number, parsed in parse_lines(path):
    if isinstance(parsed, record_fields.FieldError):
      bad_records.report(str(path), number, parsed.field, parsed.problem)
      parsed = None
    yield number, parsed


def read_records(
  path: str | os.PathLike,
  bad_records: records.BadRecords,
  parse: Callable[[str, int], _Record],
) -> Iterator[_Record]:
  """Reads a file of one record on each line. Blank lines are not records.

  Args:
    path: The file, plain or gzipped.
    bad_records: Receives bad lines, and those that `parse` refuses.
    parse: Makes a record from a line's text and number. It raises FieldError
      for a line that cannot be used; the functions of `record_fields` do.

  Yields:
    The records, in the file's order.

  Raises:
    RecordError: for a bad record, if the policy is "error"; under any policy
      if all records are bad; and as `files.open_bytes` does.
  """
  bad_records = records.BadRecordsOfFile(bad_records)
  good = 0
  for number, line in read_lines(path, bad_records):
    if not line:
      continue
    try:
      record = parse(line, number)
    except record_fields.FieldError as error:
      bad_records.report(str(path), number, error.field, error.problem)
      continue
    good += 1
    yield record
  bad_records.check_some(path, good)
