"""The lines of a text file."""

import codecs
import os
from collections.abc import Iterator

from mlir_jax.data import records
from mlir_jax.data.sources import files, record_fields

HOLDS_NUL = (
  "holds a NUL, as UTF-16 and binary files do; convert the file to UTF-8 text"
)


def count_lines(path: str | os.PathLike) -> int:
  """The number of the last line that is not blank; 0 without one."""
  with files.open_bytes(path) as file:
    numbers = (
      number
      for number, line in enumerate(file, start=1)
      if record_fields.strip(line.decode("utf-8", "replace"))
    )
    return max(numbers, default=0)


def parse_line(line: bytes) -> str:
  """A line without surrounding white space; see `read_lines`.

  Raises:
    FieldError: if it is not a line of UTF-8 text.
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
  """`read_lines`, where a bad line is its error."""
  with files.open_bytes(path) as file:
    for number, line in enumerate(file, start=1):
      try:
        parsed = parse_line(line)
      except record_fields.FieldError as error:
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
    if isinstance(parsed, record_fields.FieldError):
      bad.report(str(path), number, parsed.field, parsed.problem)
      parsed = None
    yield number, parsed
