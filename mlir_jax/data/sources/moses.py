"""Reads translations from two line-aligned files, as Moses and OPUS do."""

import itertools
import os
from collections.abc import Iterator

from mlir_jax.data import records
from mlir_jax.data.sources import files


def read(
  source_path: str | os.PathLike,
  target_path: str | os.PathLike,
  source_language: str,
  target_language: str,
  bad: records.BadRecords,
) -> Iterator[records.ParallelRecord]:
  """Reads pairs of lines; a bad line takes its translation with it.

  Args:
    source_path: One sentence a line, UTF-8, plain or gzipped.
    target_path: Their translations, line by line.
    source_language: Language of the first file.
    target_language: Language of the second file.
    bad: Told of lines that are empty or not UTF-8.

  Yields:
    The pairs, in the files' order.

  Raises:
    RecordError: for a bad line, if the policy is "error"; in any case where
      the files have no lines or not equally many. The latter is seen when
      the shorter one ends: pairs until then may be misaligned, too.
  """
  number = 0
  for source, target in itertools.zip_longest(
    files.read_lines(source_path, bad), files.read_lines(target_path, bad)
  ):
    if source is None or target is None:
      raise records.RecordError(
        f"{source_path} has {files.count_lines(source_path)} lines, but"
        f" {target_path} has {files.count_lines(target_path)}: they are not"
        " aligned; align them again."
      )
    number, source_text = source
    _, target_text = target
    if source_text is None or target_text is None:
      continue
    empty = [
      (path, language)
      for path, language, text in (
        (source_path, source_language, source_text),
        (target_path, target_language, target_text),
      )
      if not text
    ]
    if empty:
      path, language = empty[0]
      bad.report(
        str(path),
        number,
        language,
        "is empty; give the sentence, or remove the line from both files",
      )
      continue
    yield records.ParallelRecord(
      source_text, target_text, source_language, target_language
    )
  if not number:
    raise records.RecordError(
      f"{source_path} and {target_path} are empty; remove them, or write"
      " them again."
    )
