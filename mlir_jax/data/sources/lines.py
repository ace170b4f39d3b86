"""Reads plain text, one sentence a line."""

import os
import re
from collections.abc import Iterator

from mlir_jax.data import records
from mlir_jax.data.sources import files

_NUMBER = re.compile(r"[0-9]+\t\s*")


def without_number(line: str) -> str:
  """The line without a number and a tab before it.

  The Leipzig corpora number their sentences; the number is not text.
  """
  return _NUMBER.sub("", line, count=1) if _NUMBER.match(line) else line


def read(
  path: str | os.PathLike, language: str, bad: records.BadRecords
) -> Iterator[records.MonolingualRecord]:
  """Reads sentences. Blank lines part documents (as in CC-100) and are none.

  Args:
    path: One sentence a line, UTF-8, plain or gzipped. A number and a tab
      before the sentence are left out.
    language: The language of the text.
    bad: Told of lines that are not UTF-8.

  Yields:
    The sentences, in the file's order.

  Raises:
    RecordError: for a bad line, if the policy is "error"; in any case where
      the file holds blank and bad lines alone, or is not a text file.
  """
  bad = records.BadRecordsOfFile(bad)
  sentences = 0
  for _, text in files.read_lines(path, bad):
    if text:
      sentences += 1
      yield records.MonolingualRecord(without_number(text), language)
  bad.check_some(path, sentences)
  if not sentences:
    raise records.RecordError(
      f"{path} holds no sentence; remove the file, or write it again."
    )
