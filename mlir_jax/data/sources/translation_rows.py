"""Reads translations from a file of TSV, in which a line is a pair."""

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


def recognize(
  path: str | os.PathLike, codes: tuple[str, str]
) -> tuple[translations.Form, int]:
  """Recognizes the form of a file, by its first row.

  A TSV file may have a header, as pandas writes it, with the names of
  `translations.form_of_fields`. Its cells are plain text: a quotation mark is
  a part of it.

  Args:
    path: The file.
    codes: The languages, in the order of the columns.

  Returns:
    The form of rows, and the line of the header; 0 if there is none.

  Raises:
    RecordError: if the file has no row, or its form is not known.
  """
  number, cells = _first_row(path)
  by_name = dict.fromkeys(cells, "")
  if len(by_name) == len(cells):
    form = translations.form_of_fields(by_name, codes)
    if form:
      return _with_header(form, cells), number
  form = translations.form_of_row(cells, codes)
  if form:
    return form, 0
  shown = ", ".join(map(record_fields.show, cells[:6]))
  raise records.RecordError(
    f"{path}:{number}: its form is not known; the first row has {len(cells)}"
    f" columns: {shown}. {translations.EXAMPLES}"
  )


def _with_header(
  form: translations.Form, header: list[str]
) -> translations.Form:
  """Returns the form of rows whose columns have names."""

  def parse(row, margins):
    if len(row) != len(header):
      raise record_fields.FieldError(
        "columns",
        f"are {len(row)}, but the header has {len(header)}:"
        f" {', '.join(map(record_fields.show, header))}",
      )
    return form.parse(dict(zip(header, row, strict=True)), margins)

  return translations.Form(form.kind, parse)


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
  form, header = recognize(path, codes)
  margins = translations.Margins(margin, str(path), bad_records)

  def parse(line: str, number: int) -> records.ParallelRecord | None:
    return None if number == header else form.parse(_cells(line), margins)

  pairs = 0
  for pair in text_lines.read_records(path, bad_records, parse):
    if pair:
      pairs += 1
      yield pair
  check_some(path, pairs)


def check_some(path: str | os.PathLike, pairs: int) -> None:
  """Refuses a file of which no pair is left."""
  if not pairs:
    raise records.RecordError(
      f"{path} holds no pair that is kept; remove the file, or lower"
      " data.cleaning.margin."
    )
