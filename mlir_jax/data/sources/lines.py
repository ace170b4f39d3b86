"""Reads plain text, one sentence a line."""

import os
from collections.abc import Iterator

from mlir_jax.data import records
from mlir_jax.data.sources import files


def read(
  path: str | os.PathLike, language: str, bad: records.BadRecords
) -> Iterator[records.MonolingualRecord]:
  """Reads sentences. Blank lines part documents (as in CC-100) and are none.

  Args:
    path: One sentence a line, UTF-8, plain or gzipped.
    language: The language of the text.
    bad: Told of lines that are not UTF-8.

  Yields:
    The sentences, in the file's order.

  Raises:
    RecordError: for a bad line, if the policy is "error"; in any case where
      the file holds nothing but blank lines.
  """
  blank = True
  for _, text in files.read_lines(path, bad):
    if text == "":
      continue
    blank = False
    if text is not None:
      yield records.MonolingualRecord(text, language)
  if blank:
    raise records.RecordError(
      f"{path} holds no sentence; remove the file, or write it again."
    )
