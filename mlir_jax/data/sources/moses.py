"""Reads translations from two line-aligned files, as Moses and OPUS do."""

import itertools
import os
from collections.abc import Iterator

from mlir_jax.data import records
from mlir_jax.data.sources import files, lines


def read(
  source_path: str | os.PathLike,
  target_path: str | os.PathLike,
  source_language: str,
  target_language: str,
  bad: records.BadRecords,
) -> Iterator[records.ParallelRecord]:
  """Reads pairs of lines; a bad line takes its translation with it.

  A line that is blank in both files is not a pair, and blank lines at one
  file's end count for nothing.

  Args:
    source_path: One sentence a line, UTF-8, plain or gzipped. A number and a
      tab before the sentence are left out.
    target_path: Their translations, line by line.
    source_language: Language of the first file.
    target_language: Language of the second file.
    bad: Told of lines that are empty in one file, or not UTF-8.

  Yields:
    The pairs, in the files' order.

  Raises:
    RecordError: for a bad line, if the policy is "error"; in any case where
      the files have no pair or not equally many lines. The latter is seen when
      the shorter one ends: pairs until then may be misaligned, too.
  """
  bad = records.BadRecordsOfFile(bad)
  pairs = 0
  for number, (source, target) in enumerate(
    itertools.zip_longest(
      files.read_lines(source_path, bad),
      files.read_lines(target_path, bad),
      fillvalue=(0, ""),
    ),
    start=1,
  ):
    texts = source[1], target[1]
    if not any(texts) and None not in texts:
      continue
    if 0 in (source[0], target[0]):  # One file has ended.
      raise records.RecordError(
        f"{source_path} has {files.count_lines(source_path)} lines, but"
        f" {target_path} has {files.count_lines(target_path)}: they are not"
        " aligned; align them again."
      )
    if None in texts:
      continue
    if not all(texts):
      path, language = (
        (source_path, source_language)
        if not texts[0]
        else (target_path, target_language)
      )
      bad.report(
        str(path),
        number,
        language,
        "is empty; give the sentence, or remove the line from both files",
      )
      continue
    pairs += 1
    yield records.ParallelRecord(
      *map(lines.without_number, texts), source_language, target_language
    )
  bad.check_some(f"{source_path} with {target_path}", pairs)
  if not pairs:
    raise records.RecordError(
      f"{source_path} and {target_path} are empty; remove them, or write"
      " them again."
    )
