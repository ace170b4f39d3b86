"""Reads translations from a file of TSV without a header: a line is a pair.

A quotation mark is a part of its text.
"""

import os
from collections.abc import Iterator

from mlir_jax.data import records
from mlir_jax.data.sources import record_fields, text_lines, translations


def _first_row(path: str | os.PathLike) -> tuple[int, list[str]]:
  """Returns the line and the cells of the first row that can be read."""
  for number, line in text_lines.parse_lines(path):
    if line and isinstance(line, str):
      return number, _cells(line)
  raise records.RecordError(
    f"{path} holds no pair; remove the file, or write it again."
  )


def _cells(line: str) -> list[str]:
  return [record_fields.strip(cell) for cell in line.split("\t")]


def has_header(path: str | os.PathLike, codes: tuple[str, str]) -> bool:
  """Returns whether the first row has the names of columns.

  They are those of `translations.form_of_fields`. Such a file is read by
  `translation_records`.
  """
  _, cells = _first_row(path)
  # A program may write names in quotation marks.
  by_name = dict.fromkeys((cell.strip('"') for cell in cells), "")
  return len(by_name) == len(cells) and bool(
    translations.form_of_fields(by_name, codes)
  )


def recognize(
  path: str | os.PathLike, codes: tuple[str, str]
) -> translations.Form:
  """Recognizes the form of a file, by its first row.

  Raises:
    RecordError: if the file has no row, or its form is not known.
  """
  number, cells = _first_row(path)
  form = translations.form_of_row(cells, codes)
  if not form:
    shown = ", ".join(map(record_fields.show, cells[:6]))
    raise records.RecordError(
      f"{path}:{number}: its form is not known; the first row has"
      f" {len(cells)} columns: {shown}. {translations.EXAMPLES}"
    )
  return form


def read_scored(
  path: str | os.PathLike,
  codes: tuple[str, str],
  bad_records: records.BadRecords,
) -> Iterator[tuple[float, records.ParallelRecord]]:
  """Reads a file of WikiMatrix: yields the margin and the pair of each row.

  Args:
    path: The file, plain or gzipped.
    codes: The languages, in the order of the columns.
    bad_records: Receives bad rows.

  Raises:
    RecordError: for a bad row, if the policy is "error"; under any policy if
      no row can be used.
  """
  return text_lines.read_records(
    path,
    bad_records,
    lambda line, _: translations.parse_scored_row(_cells(line), codes),
  )


def read(
  path: str | os.PathLike,
  codes: tuple[str, str],
  bad_records: records.BadRecords,
  margin: float = 0.0,
) -> Iterator[records.ParallelRecord]:
  """Reads the pairs of a file.

  Args:
    path: The file, plain or gzipped.
    codes: The languages, in the order of the columns.
    bad_records: Receives bad rows; counts the pairs with a low margin.
    margin: The lowest margin that is kept, where rows have one.

  Yields:
    The pairs, in the file's order.

  Raises:
    RecordError: for a bad row, if the policy is "error"; under any policy if
      the form is not known, or no pair can be used.
  """
  form = recognize(path, codes)
  margins = translations.Margins(margin, str(path), bad_records)

  def parse(line: str, number: int) -> records.ParallelRecord | None:
    del number
    return form.parse(_cells(line), margins)

  pairs = text_lines.read_records(path, bad_records, parse)
  return translations.kept(pairs, path)
