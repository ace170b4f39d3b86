"""Reads question-passage pairs in DPR's biencoder JSON.

The format is that of Karpukhin et al. (2020): one JSON array of objects with
`question`, `positive_ctxs` and `hard_negative_ctxs`, each passage an object
with `title`, `text` and `passage_id` (or `psg_id`, as in DPR's own files).
DPR's files take gigabytes, often in a single line, so one record at a time
is held. One object a line is read too.
"""

import codecs
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from mlir_jax.data import records
from mlir_jax.data.sources import (
  files,
  hard_negatives,
  record_fields,
  text_lines,
)

_CHUNK_BYTES = 1 << 20
_WHITE_SPACE = re.compile(r"[ \t\n\r]*")
# The longest thing that the end of the buffer can cut other than a string:
# "-Infinity", or an escaped surrogate pair.
_LONGEST_TOKEN = 16


class _JsonArray:
  """Yields the values of a JSON array without holding the file.

  Attributes:
    line: Line of what comes next, from 1.
    number: Number of the value that is read, from 1.
  """

  def __init__(self, path: str | os.PathLike, file: BinaryIO):
    self.line = 1
    self.number = 0
    self._path = path
    self._file = file
    # Bytes that are not UTF-8 are kept, to be found in the field they are in.
    self._decode = codecs.getincrementaldecoder("utf-8-sig")(
      "surrogateescape"
    ).decode
    self._buffer = ""
    self._position = 0

  def _read_more(self) -> bool:
    """Reads on; at the file's end, returns False.

    What is left doubles at least: a long record takes linear time.
    """
    rest = self._buffer[self._position :]
    chunk = self._file.read(max(_CHUNK_BYTES, len(rest)))
    self._buffer = rest + self._decode(chunk, final=not chunk)
    self._position = 0
    return bool(chunk)

  def peek(self) -> str:
    """The next character that is no white space; "" at the file's end."""
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
    """Yields each value's first line, its number, and the value."""
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


def _values(
  path: str | os.PathLike, bad: records.BadRecords
) -> Iterator[tuple[int, int, object]]:
  """Yields the line, the number and the value of each record of a file."""
  with files.open_bytes(path) as file:
    array = _JsonArray(path, file)
    if array.peek() == "[":
      yield from array.values()
      return
  for line, text in text_lines.read_lines(path, bad):
    if not text:
      continue
    try:
      value = record_fields.parse_json(text)
    except record_fields.FieldError as error:
      bad.report(str(path), line, f"record {line}", error.problem)
      continue
    yield line, line, value


def _optional(
  check: Callable[[object, str], str], value: object, field: str
) -> str:
  """A field's text by `check`; "" where it is null or blank."""
  try:
    return check(value, field)
  except record_fields.EmptyTextError:
    return ""


def _passage(value: Any, where: str) -> records.Passage:
  text = record_fields.get_text(value, "text", where)
  id_field = "psg_id" if value.get("passage_id") is None else "passage_id"
  return records.Passage(
    text=text,
    title=_optional(
      record_fields.check_text, value.get("title"), f"{where}.title"
    ),
    passage_id=_optional(
      record_fields.check_id, value.get(id_field), f"{where}.{id_field}"
    ),
  )


def _record(
  value: Any, place: records.Place, language: str, bad: records.BadRecords
) -> records.RetrievalRecord:
  question = record_fields.get_text(value, "question")
  passages = record_fields.get_field(value, "positive_ctxs")
  if not isinstance(passages, list | None):
    raise record_fields.FieldError(
      "positive_ctxs",
      f"is {record_fields.json_type(passages)}; give a list of passages",
    )
  if not passages:
    raise record_fields.FieldError(
      "positive_ctxs", "is empty; give at least one passage that answers"
    )
  positives = tuple(
    _passage(passage, f"positive_ctxs[{i}]")
    for i, passage in enumerate(passages)
  )
  negatives = hard_negatives.read(
    value.get("hard_negative_ctxs"),
    "hard_negative_ctxs",
    _passage,
    place,
    bad,
  )
  return records.RetrievalRecord(
    question, positives, negatives, language, place
  )


def read(
  path: str | os.PathLike, bad: records.BadRecords, language: str = "en"
) -> Iterator[records.RetrievalRecord]:
  """Reads question-passage pairs; memory holds one of them at a time.

  `negative_ctxs` (random passages) are not read: a batch has its own.
  `hard_negative_ctxs` may be missing or null, and a bad hard negative costs
  itself alone: see `hard_negatives.read`.

  Args:
    path: A JSON array of records or one record a line, plain or gzipped.
    bad: Receives records and hard negatives that cannot be used, each by line
      and number.
    language: The language of the questions and the passages.

  Yields:
    The records, in the file's order.

  Raises:
    RecordError: for a bad record, if the policy is "error"; in any case
      where the array is not JSON or is cut, or the file holds no record that
      can be used.
  """
  bad = records.BadRecordsOfFile(bad)
  good = 0
  for line, number, value in _values(path, bad):
    place = records.Place(str(path), line, number)
    try:
      record = _record(value, place, language, bad)
    except record_fields.FieldError as error:
      bad.report(
        str(path), line, f"record {number}, {error.field}", error.problem
      )
      continue
    good += 1
    yield record
  bad.check_some(path, good)
  if not good:
    raise records.RecordError(
      f"{path} holds no record; remove the file, or write it again."
    )
