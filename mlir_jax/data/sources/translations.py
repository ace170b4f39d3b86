"""Makes translations of records, from the names of their fields."""

import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from mlir_jax.data import languages, records
from mlir_jax.data.sources import record_fields

# WikiMatrix writes "1.2105". float() would also read "nan" and "1_0".
MARGIN = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,20})?")

_MARGIN_FIELD = "margin"

EXAMPLES = """\
Translations are in one of these forms, in files that name both languages:
  NAME.en-de.{en,de}          two line-aligned files (Moses, OPUS, Tatoeba)
  NAME.en-de.tsv              A house.<tab>Ein Haus.
  NAME.en-de.tsv              1.07<tab>A house.<tab>Ein Haus.
                              (WikiMatrix: the margin is first)
  NAME.en-de.{jsonl,csv,…}    {"english": "A house.", "non_english": "Ein …"}
                              {"source": "A house.", "target": "Ein Haus."}
                              {"en": "A house.", "de": "Ein Haus."}
                              {"translation": {"en": "A …", "de": "Ein …"}}
  NAME.en-de.tmx              <tu><tuv xml:lang="en"><seg>A house.</seg></tuv>
                              <tuv xml:lang="de"><seg>Ein Haus.</seg></tuv></tu>
  newstest2019-src.eng.txt    A house.     (NTREX: a line of each file)
  newstest2019-ref.deu.txt    Ein Haus.
Named fields may be in .json, .jsonl, .csv, .tsv or .parquet."""


def check_margin(value: Any) -> float:
  """Returns a margin that is a number, or the text of one.

  Raises:
    FieldError: if it is not a finite number.
  """
  if not isinstance(value, int | float) or isinstance(value, bool):
    text = record_fields.check_text(value, _MARGIN_FIELD)
    if not MARGIN.fullmatch(text):
      raise record_fields.FieldError(
        _MARGIN_FIELD,
        f"{record_fields.show(text)} is not a number; give one like 1.07",
      )
    value = float(text)
  if isinstance(value, float) and not math.isfinite(value):
    raise record_fields.FieldError(
      _MARGIN_FIELD, f"is {value}; give a number like 1.07"
    )
  return value


@dataclasses.dataclass
class Margins:
  """Cuts the pairs with a low margin score, and counts them.

  Attributes:
    least: The lowest margin that is kept.
    path: The file of the pairs, for the count.
    bad_records: Counts the cut pairs.
  """

  least: float
  path: str
  bad_records: records.BadRecords

  def cuts(self, value: Any) -> bool:
    """Returns whether a pair is cut, by its margin; see `check_margin`."""
    if check_margin(value) >= self.least:
      return False
    self.bad_records.count_removed(
      self.path,
      f"pairs with a margin below {self.least:g} (data.cleaning.margin)",
    )
    return True


@dataclasses.dataclass(frozen=True)
class Form:
  """Where a record has its two sentences.

  Attributes:
    kind: The name of the form, for the notes.
    parse: Returns the pair of a record; None if its margin cuts it. It raises
      FieldError for a record that cannot be used.
  """

  kind: str
  parse: Callable[[Any, Margins], records.ParallelRecord | None]


def _fields_of_codes(
  names: Sequence[str], codes: tuple[str, str]
) -> tuple[str, str] | None:
  """Returns the fields that are named with the two languages."""
  by_code = {
    languages.code(name): name
    for name in names
    if re.fullmatch(languages.PATTERN, name)
  }
  if set(codes) <= by_code.keys():
    return by_code[codes[0]], by_code[codes[1]]
  return None


def form_of_fields(record: Any, codes: tuple[str, str]) -> Form | None:
  """Recognizes a record with named fields, by their names.

  Args:
    record: The decoded object, or a row of a table by column.
    codes: The languages of the pair, in the order of the file's name.

  Returns:
    The form; None if there is none for these fields.
  """
  if not isinstance(record, Mapping):
    return None
  where, fields = "", record
  names = None
  if isinstance(inner := record.get("translation"), Mapping):
    where, fields = "translation", inner
    names = _fields_of_codes(tuple(inner), codes)
  elif {"english", "non_english"} <= record.keys() and "en" in codes:
    names = ("english", "non_english")
    names = names if codes[0] == "en" else names[::-1]
  elif {"source", "target"} <= record.keys():
    names = ("source", "target")
  else:
    names = _fields_of_codes(tuple(record), codes)
  if not names:
    return None
  has_margin = _MARGIN_FIELD in record

  def parse(value: Any, margins: Margins) -> records.ParallelRecord | None:
    holder = record_fields.get_field(value, where) if where else value
    texts = [record_fields.get_text(holder, name, where) for name in names]
    if has_margin and margins.cuts(
      record_fields.get_field(value, _MARGIN_FIELD)
    ):
      return None
    return records.ParallelRecord(texts[0], texts[1], *codes)

  shown = ", ".join(f"{where}.{name}" if where else name for name in names)
  kind = f"translations with the fields {shown}"
  if has_margin:
    kind += f", {_MARGIN_FIELD}"
  unused = [*_others(record, (*names, where, _MARGIN_FIELD))]
  if where:
    unused += [f"{where}.{name}" for name in _others(fields, names)]
  if unused:
    kind += f" (not read: {', '.join(map(record_fields.show, unused))})"
  return Form(kind, parse)


def _others(record: Mapping[str, Any], used: Sequence[str]) -> list[str]:
  """Returns the fields of a record that are not used; "" is a row's number."""
  return [name for name in record if name and name not in used]


def form_of_row(columns: Sequence[str], codes: tuple[str, str]) -> Form | None:
  """Recognizes a row of a table without a header, by its number of columns.

  Args:
    columns: The cells of the first row.
    codes: The languages of the pair, in the order of the columns.

  Returns:
    The form; None if there is none for such a row.
  """
  if len(columns) == 3 and MARGIN.fullmatch(columns[0]):

    def parse_scored(row: Any, margins: Margins):
      margin, pair = parse_scored_row(row, codes)
      return None if margins.cuts(margin) else pair

    kind = f"WikiMatrix rows of a margin, {' and '.join(codes)}"
    return Form(kind, parse_scored)
  if len(columns) != 2:
    return None
  return Form(
    f"rows of {' and '.join(codes)}", lambda row, _: _parse_row(row, codes)
  )


def parse_scored_row(
  row: Sequence[str], codes: tuple[str, str]
) -> tuple[float, records.ParallelRecord]:
  """Returns the margin and the pair of a row of WikiMatrix.

  Args:
    row: Its cells.
    codes: The languages of the pair, in the order of the columns.

  Raises:
    FieldError: if the row cannot be used.
  """
  _check_columns(row, (_MARGIN_FIELD, *codes))
  margin, *sentences = row
  return check_margin(margin), _parse_row(sentences, codes)


def _parse_row(
  row: Sequence[str], codes: tuple[str, str]
) -> records.ParallelRecord:
  _check_columns(row, codes)
  source, target = map(record_fields.check_text, row, codes)
  return records.ParallelRecord(source, target, *codes)


def _check_columns(row: Sequence[str], names: Sequence[str]) -> None:
  if len(row) != len(names):
    raise record_fields.FieldError(
      "columns",
      f"are {len(row)}, not {len(names)}: {', '.join(names)}; a tab is only"
      " between columns",
    )


def kept(
  pairs: Iterable[records.ParallelRecord | None], path: str | os.PathLike
) -> Iterator[records.ParallelRecord]:
  """Yields the pairs that the margin does not cut.

  Args:
    pairs: From `Form.parse`: None for a pair that is cut.
    path: What messages call the file or the data set.

  Raises:
    RecordError: if no pair is left.
  """
  count = 0
  for pair in pairs:
    if pair:
      count += 1
      yield pair
  if not count:
    raise records.RecordError(
      f"{path} holds no pair that is kept; remove it, or lower"
      " data.cleaning.margin."
    )
