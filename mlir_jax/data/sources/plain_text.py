"""Reads plain text, one sentence on each line."""

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

from mlir_jax.data import records
from mlir_jax.data.sources import record_fields, text_lines

_NUMBER = re.compile(r"[0-9]+\t")


def without_numbers(
  lines: Iterable[tuple[int, Any]],
  path: str | os.PathLike,
  bad_records: records.BadRecords,
) -> Iterator[tuple[int, Any]]:
  """Removes the number and the tab before each sentence of a numbered file.

  The Leipzig corpora number their sentences; the number is not text. A file is
  numbered if its first sentence is. In any other file, a number and a tab are
  text.

  Args:
    lines: From `text_lines.read_lines` or `text_lines.parse_lines`.
    path: The file of the lines.
    bad_records: Counts the numbers.

  Yields:
    The lines, without the numbers.
  """
  is_numbered = None
  for number, text in lines:
    if text and isinstance(text, str):
      match = _NUMBER.match(text)
      if is_numbered is None:
        is_numbered = match is not None
      if is_numbered and match:
        text = record_fields.strip(text[match.end() :])
        bad_records.count_removed(str(path), "numbers before sentences")
    yield number, text


def read(
  path: str | os.PathLike, language: str, bad_records: records.BadRecords
) -> Iterator[records.MonolingualRecord]:
  """Reads sentences. Blank lines (between documents in CC-100) are ignored.

  Args:
    path: One sentence on each line, UTF-8, plain or gzipped; see
      `without_numbers`.
    language: The language of the text.
    bad_records: Receives bad lines; counts numbers before sentences.

  Yields:
    The sentences, in the file's order.

  Raises:
    RecordError: for a bad line, if the policy is "error"; under any policy if
      the file holds no sentence, or is not a text file.
  """
  bad_records = records.BadRecordsOfFile(bad_records)
  sentences = 0
  for _, text in without_numbers(
    text_lines.read_lines(path, bad_records), path, bad_records
  ):
    if text:
      sentences += 1
      yield records.MonolingualRecord(text, language)
  bad_records.check_some(path, sentences)
  if not sentences:
    raise records.RecordError(
      f"{path} holds no sentence; remove the file, or write it again."
    )
