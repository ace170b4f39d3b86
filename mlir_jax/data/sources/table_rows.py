"""Reads and writes a CSV or TSV file; its first row has the columns' names."""

import codecs
import csv
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mlir_jax.data import records
from mlir_jax.data.sources import files, record_fields

# Characters of a cell. A quotation mark that nothing closes makes a cell of all
# that follows.
_LONGEST_CELL = 1 << 24

_ROW = dict[str, str]


def _is_tsv(path: str | os.PathLike) -> bool:
  return str(path).removesuffix(".gz").endswith(".tsv")


class _Lines:
  """Decodes the lines of a file and counts them.

  Bytes that are not UTF-8 pass, so that the error can name their field. A byte
  order mark before a line is left out.
  """

  def __init__(self, file: Iterable[bytes]):
    self._lines = iter(file)
    self.number = 0

  def __iter__(self) -> "_Lines":
    return self

  def __next__(self) -> str:
    line = next(self._lines)
    self.number += 1
    return line.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")


def _read_rows(
  path: str | os.PathLike, lines: _Lines
) -> Iterator[tuple[int, list[str] | record_fields.FieldError]]:
  """Yields the first line and the cells of each row; [] for a blank line.

  A row of TSV that cannot be read is an error, and the next row follows. Where
  a row of CSV cannot be read, nobody knows where the next one begins.

  Raises:
    RecordError: if the CSV is damaged.
  """
  csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
  rows = csv.reader(lines, strict=True)
  while True:
    start = lines.number + 1
    try:
      if _is_tsv(path):
        line = next(lines)  # A row ends with its line.
        row = next(csv.reader([line], delimiter="\t", strict=True), [])
      else:
        row = next(rows)
    except StopIteration:
      return
    except csv.Error as error:
      problem = (
        f"is not a row: {error}; a cell with a quotation mark, a line end or a"
        " separator is in quotation marks, and those in it are doubled"
      )
      if not _is_tsv(path):
        raise records.RecordError(
          f"{path}:{start}: record {problem}."
        ) from None
      row = record_fields.FieldError("record", problem)
    yield start, row


def _is_filled(cell: str) -> bool:
  """Whether a cell holds something; zeros are what a cut copy leaves."""
  return bool(record_fields.strip(cell)) or "\0" in cell


def _read_header(
  path: str | os.PathLike,
  rows: Iterator[tuple[int, list[str] | record_fields.FieldError]],
) -> list[str]:
  """Returns the columns' names, from the first row that is not blank."""
  line, row = next(((line, row) for line, row in rows if row), (1, []))
  try:
    if isinstance(row, record_fields.FieldError):
      raise row
    # A program may write the number of a row in a column without a name.
    names = [
      record_fields.optional(record_fields.check_text, name, f"column {i}")
      for i, name in enumerate(row, start=1)
    ]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
      raise record_fields.FieldError(
        "header", f"names {record_fields.show(twice[0])} twice; rename one"
      )
  except record_fields.FieldError as error:
    raise records.RecordError(
      f"{path}:{line}: {error.field}: {error.problem}."
    ) from None
  return names


def read_values(
  path: str | os.PathLike, bad_records: records.BadRecords
) -> Iterator[tuple[records.Place, _ROW]]:
  """Yields the place and the cells of each row, by column; "" if empty.

  Args:
    path: The file, plain or gzipped.
    bad_records: Receives rows of another length than the header's, copies of
      the header, and lines of TSV that cannot be read.

  Raises:
    RecordError: for a bad row, if the policy is "error"; under any policy if
      the header is bad, or CSV is damaged.
  """
  with files.open_bytes(path) as file:
    lines = _Lines(file)
    rows = _read_rows(path, lines)
    names = _read_header(path, rows)
    number = 0
    for line, row in rows:
      if isinstance(row, list) and not any(map(_is_filled, row)):
        continue  # A spreadsheet leaves such rows at the end.
      number += 1
      if isinstance(row, record_fields.FieldError):
        bad_records.report(str(path), line, f"record {number}", row.problem)
        continue
      problem = ""
      if len(row) != len(names):
        problem = f"has {len(row)} cells, but the header has {len(names)}"
      elif row == names:
        problem = "is the header again; remove it"
      if problem:
        bad_records.report(str(path), line, f"record {number}", problem)
        continue
      yield (
        records.Place(str(path), line, number),
        dict(zip(names, row, strict=True)),
      )


def check_values(
  values: Iterable[tuple[object, Mapping[str, Any]]], like: str | os.PathLike
) -> None:
  """Checks that rows can be written; see `containers.check`."""
  for place, value in values:
    for name, cell in value.items():
      _cell(place, name, cell, _is_tsv(like))


def write_values(
  path: str | os.PathLike,
  values: Iterable[Mapping[str, Any]],
  like: str | os.PathLike,
) -> None:
  """Writes rows; see `containers.write`. The columns are those of all rows.

  Raises:
    ValueError: if a value is not a text, or a text for TSV has a line end.
  """
  del like  # The names of both files say the separator.
  is_tsv = _is_tsv(path)
  names: dict[str, None] = {}
  folder = os.path.dirname(os.path.abspath(path))
  os.makedirs(folder, exist_ok=True)
  # The header comes first, but only the last row completes it.
  with tempfile.TemporaryFile("w+", dir=folder) as waiting:
    for value in values:
      names |= dict.fromkeys(value)
      waiting.write(json.dumps(value) + "\n")
    waiting.seek(0)
    with files.writing(path) as file:
      text = io.TextIOWrapper(
        file, "utf-8", "surrogateescape", newline="", write_through=True
      )
      minimal, all_quoted = (
        csv.writer(
          text,
          delimiter="\t" if is_tsv else ",",
          lineterminator="\n",
          quoting=quoting,
        )
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
      )
      minimal.writerow(names)
      for number, line in enumerate(waiting, start=1):
        value = json.loads(line)
        place = f"{path}: record {number}"
        cells = [_cell(place, name, value.get(name), is_tsv) for name in names]
        # The minimum leaves out a carriage return, which then ends the row.
        has_return = any("\r" in cell for cell in cells)
        (all_quoted if has_return else minimal).writerow(cells)
      text.detach()


def _cell(place: object, name: str, value: Any, is_tsv: bool) -> str:
  """Checks a cell; None becomes an empty one."""
  if value is None:
    return ""
  problem = ""
  if not isinstance(value, str):
    problem = f"is {record_fields.json_type(value)}; a cell is a text"
  elif is_tsv and ("\n" in value or "\r" in value):
    problem = (
      "has a line end, which a row of TSV cannot have; write the file as CSV or"
      " JSON"
    )
  if problem:
    raise ValueError(f"{place}, {name}: {problem}.")
  return value
