"""Reads and writes a JSON file of records; memory holds one of them at a time.

A file is one JSON array of records, or has one record on each line. Files of
question-passage pairs take gigabytes, often in a single line, so an array is
decoded value by value.
"""

import codecs
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from mlir_jax.data import records
from mlir_jax.data.sources import files, record_fields, text_lines

_CHUNK_BYTES = 1 << 20
_WHITE_SPACE = re.compile(r"[ \t\n\r]*")
# The longest token, other than a string, that the buffer's end can cut:
# "-Infinity", or an escaped surrogate pair.
_LONGEST_TOKEN = 16


class _JsonArray:
  """Decodes a JSON array value by value.

  Attributes:
    line: The line of the next character, from 1.
    number: The number of the current value, from 1.
  """

  def __init__(self, path: str | os.PathLike, file: BinaryIO):
    self.line = 1
    self.number = 0
    self._path = path
    self._file = file
    # Bytes that are not UTF-8 pass, so that the error can name their field.
    self._decode = codecs.getincrementaldecoder("utf-8-sig")(
      "surrogateescape"
    ).decode
    self._buffer = ""
    self._position = 0

  def _read_more(self) -> bool:
    """Reads the next chunk into the buffer; returns False at the file's end.

    The chunk is at least as long as the unread rest of the buffer, so that a
    long record takes linear time.
    """
    rest = self._buffer[self._position :]
    chunk = self._file.read(max(_CHUNK_BYTES, len(rest)))
    self._buffer = rest + self._decode(chunk, final=not chunk)
    self._position = 0
    return bool(chunk)

  def peek(self) -> str:
    """Returns the next character after white space; "" at the file's end."""
    while True:
      space = _WHITE_SPACE.match(self._buffer, self._position)
      assert space  # It may be empty.
      end = space.end()
      self.line += self._buffer.count("\n", self._position, end)
      self._position = end
      if end < len(self._buffer):
        return self._buffer[end]
      if not self._read_more():
        return ""

  def _error(self, line: int, problem: str) -> records.RecordError:
    return records.RecordError(
      f"{self._path}:{line}: record {self.number}: {problem}"
    )

  def _truncated(self) -> records.RecordError:
    return self._error(
      self.line,
      "the file ends before its JSON array does; it was cut, so fetch or"
      " write it again.",
    )

  def _take(self, expected: str) -> str:
    """Moves past the next character, which must be one of `expected`."""
    character = self.peek()
    if not character:
      raise self._truncated()
    if character not in expected:
      raise self._error(
        self.line,
        f"{' or '.join(expected)} should follow, not {character!r}; the file"
        " must be one JSON array, or one object a line.",
      )
    self._position += 1
    return character

  def _read_value(self) -> object:
    while True:
      try:
        value, end = record_fields.JSON_DECODER.raw_decode(
          self._buffer, self._position
        )
      except json.JSONDecodeError as error:
        in_string = error.msg.startswith("Unterminated string")
        near_end = error.pos > len(self._buffer) - _LONGEST_TOKEN
        offset = error.pos - self._position
        if (in_string or near_end) and self._read_more():
          continue
        end = self._position + offset
        if in_string or end >= len(self._buffer):
          raise self._truncated() from None
        line = self.line + self._buffer.count("\n", self._position, end)
        problem = error.msg
        if self._buffer[end] == "\0":
          problem = f"it {text_lines.HOLDS_NUL}"
        raise self._error(line, f"is not JSON: {problem}.") from None
      except RecursionError:
        raise self._error(
          self.line, f"{record_fields.NESTED_TOO_DEEP}."
        ) from None
      self.line += self._buffer.count("\n", self._position, end)
      self._position = end
      return value

  def values(self) -> Iterator[tuple[int, int, object]]:
    """Yields the first line, the number and the value of each record."""
    self._take("[")
    if self.peek() == "]":
      self._take("]")
    else:
      separator = ","
      while separator == ",":
        self.number += 1
        self.peek()
        line = self.line
        yield line, self.number, self._read_value()
        separator = self._take(",]")
    if self.peek():
      raise self._error(self.line, "text follows the JSON array; remove it.")


def read_values(
  path: str | os.PathLike, bad_records: records.BadRecords
) -> Iterator[tuple[records.Place, Any]]:
  """Yields the place and the decoded value of each record.

  Args:
    path: An array of records, or one record on each line; plain or gzipped.
    bad_records: Receives lines that are not JSON.

  Raises:
    RecordError: for a bad line, if the policy is "error"; under any policy if
      the array is not JSON or is cut.
  """
  with files.open_bytes(path) as file:
    array = _JsonArray(path, file)
    if array.peek() == "[":
      for line, number, value in array.values():
        yield records.Place(str(path), line, number), value
      return
  for line, text in text_lines.read_lines(path, bad_records):
    if not text:
      continue
    try:
      value = record_fields.parse_json(text)
    except record_fields.FieldError as error:
      bad_records.report(str(path), line, f"record {line}", error.problem)
      continue
    yield records.Place(str(path), line, line), value


def is_array(path: str | os.PathLike) -> bool:
  """Returns whether a JSON file holds one array."""
  with files.open_bytes(path) as file:
    return _JsonArray(path, file).peek() == "["


def check_values(
  values: Iterable[tuple[object, Mapping[str, Any]]], like: str | os.PathLike
) -> None:
  """Checks that records can be written; see `containers.check`."""
  del like
  for place, value in values:
    try:
      record_fields.dump_json(value)
    except ValueError as error:
      raise ValueError(f"{place}, {error}") from None


def write_values(
  path: str | os.PathLike,
  values: Iterable[Mapping[str, Any]],
  like: str | os.PathLike,
) -> None:
  """Writes records as an array or as lines; see `containers.write`."""
  before, between, after = ("[\n", ",\n", "\n]\n")
  if not is_array(like):
    before, between, after = ("", "\n", "\n")
  with files.writing(path) as file:
    for number, value in enumerate(values):
      file.write((between if number else before).encode())
      file.write(record_fields.dump_json(value))
    file.write(after.encode())
