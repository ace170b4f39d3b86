"""Reads translations from two line-aligned files (Moses, OPUS)."""

import itertools
import os
from collections.abc import Iterator

from mlir_jax.data import records
from mlir_jax.data.sources import plain_text, record_fields, text_lines


def _fault(
  text: str | record_fields.FieldError, language: str
) -> record_fields.FieldError | None:
  """Returns why a line of one file cannot be used; None if it can be."""
  if isinstance(text, record_fields.FieldError):
    return text
  if text:
    return None
  return record_fields.FieldError(
    language, "is empty; give the sentence, or remove the line from both files"
  )


def read(
  source_path: str | os.PathLike,
  target_path: str | os.PathLike,
  source_language: str,
  target_language: str,
  bad_records: records.BadRecords,
) -> Iterator[records.ParallelRecord]:
  """Reads pairs of lines. A bad line and its translation are one bad record.

  A line that is blank in both files is not a pair. Blank lines at the end of
  one file are ignored.

  Args:
    source_path: One sentence on each line, UTF-8, plain or gzipped; see
      `plain_text.without_numbers`.
    target_path: Their translations, line by line.
    source_language: Language of the first file.
    target_language: Language of the second file.
    bad_records: Receives each pair of which a line is bad, or blank in one file
      only; counts numbers before sentences.

  Yields:
    The pairs, in the files' order.

  Raises:
    RecordError: for a bad pair, if the policy is "error"; under any policy if
      the files hold no pair or differ in their number of lines. The latter is
      found at the end of the shorter file, so earlier pairs may be misaligned.
  """
  bad_records = records.BadRecordsOfFile(bad_records)
  paths = source_path, target_path
  languages = source_language, target_language
  pairs = 0
  for number, ((source_line, source), (target_line, target)) in enumerate(
    itertools.zip_longest(
      *(
        plain_text.without_numbers(
          text_lines.parse_lines(path), path, bad_records
        )
        for path in paths
      ),
      fillvalue=(0, ""),
    ),
    start=1,
  ):
    if not source and not target:
      continue
    if 0 in (source_line, target_line):  # One file has ended.
      raise records.RecordError(
        f"{source_path} has {text_lines.count_lines(source_path)} lines, but"
        f" {target_path} has {text_lines.count_lines(target_path)}: they are"
        " not aligned; align them again."
      )
    faults = list(map(_fault, (source, target), languages))
    if any(faults):
      path, fault = next(
        (path, fault)
        for path, fault in zip(paths, faults, strict=True)
        if fault
      )
      bad_records.report(str(path), number, fault.field, fault.problem)
      continue
    pairs += 1
    yield records.ParallelRecord(source, target, *languages)
  bad_records.check_some(f"{source_path} with {target_path}", pairs)
  if not pairs:
    raise records.RecordError(
      f"{source_path} and {target_path} are empty; remove them, or write"
      " them again."
    )
