"""Reads the passages in a record, and adds passages to it."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mlir_jax.data import records
from mlir_jax.data.sources import record_fields

# The text of a whole number of 64 bits, as Python writes it.
_LARGEST = 1e30  # Scores are kept in float32.
_NUMBER = re.compile("0|-?[1-9][0-9]{0,17}")


def read_positives(
  record: Any,
  field: str,
  read_passage: Callable[[Any, str], records.Passage],
  scores: str = "",
) -> tuple[records.Passage, ...]:
  """Reads the passages that answer a record's question.

  Args:
    record: The decoded JSON object.
    field: The name of the list in the object.
    read_passage: Makes a passage from a decoded JSON value and the path to
      it, e.g. "pos[0]". It raises FieldError for a bad one.
    scores: The field of the passages' scores, "" for none; see `read_scores`.

  Returns:
    The passages, at least one.

  Raises:
    FieldError: if the field is missing, is not a list or is empty, or a
      passage is bad.
  """
  values = record_fields.get_field(record, field)
  if not isinstance(values, list | None):
    raise record_fields.FieldError(
      field, f"is {record_fields.json_type(values)}; give a list of passages"
    )
  if not values:
    raise record_fields.FieldError(
      field, "is empty; give at least one passage that answers"
    )
  known = read_scores(record, scores, len(values))
  return tuple(
    _scored(read_passage(value, f"{field}[{i}]"), known[i])
    for i, value in enumerate(values)
  )


def read_scores(
  record: Mapping[str, Any], field: str, count: int
) -> Sequence[float | None]:
  """Reads the scores that a teacher gives to passages.

  Args:
    record: The decoded JSON object.
    field: The name of the list of numbers; "" for none. It may be missing, null
      or empty, and so may each number.
    count: The number of the passages.

  Returns:
    A number for each passage, None where there is none.

  Raises:
    FieldError: if it is not a list with a finite number for each passage.
  """
  values = record.get(field) if field else None
  if values is None or values == []:
    return [None] * count
  if not isinstance(values, list) or len(values) != count:
    found = (
      f"has {len(values)} numbers"
      if isinstance(values, list)
      else f"is {record_fields.json_type(values)}"
    )
    raise record_fields.FieldError(
      field, f"{found}; give one for each of the {count} passages"
    )
  for i, value in enumerate(values):
    if value is not None and not (
      isinstance(value, int | float)
      and not isinstance(value, bool)
      and abs(value) < _LARGEST
    ):
      raise record_fields.FieldError(
        f"{field}[{i}]",
        f"is {record_fields.show(str(value))}; give a number, or null",
      )
  return [None if value is None else float(value) for value in values]


def read_hard_negatives(
  record: Any,
  field: str,
  read_passage: Callable[[Any, str], records.Passage],
  place: records.Place,
  bad_records: records.BadRecords,
  scores: str = "",
) -> tuple[records.Passage, ...]:
  """Reads the hard negatives of a record. A bad one does not cost the record.

  Args:
    record: The decoded JSON object.
    field: The name of the list in the object. A missing or null list is empty.
    read_passage: As in `read_positives`.
    place: The place of the record.
    bad_records: Receives each bad hard negative; under "skip" the others are
      kept. It also receives a value that is not a list; the record then has
      none.
    scores: The field of the passages' scores, "" for none; see `read_scores`.

  Returns:
    The passages. A null passage, or one without text, has the text "".
    `store_arrays` drops it and counts it; `store_join` drops copies of a
    positive.

  Raises:
    RecordError: for a bad hard negative, if the policy is "error".
    FieldError: if the record is not an object, or the scores are bad.
  """
  if isinstance(record, Mapping) and record.get(field) is None:
    return ()
  values = record_fields.get_field(record, field)
  if not isinstance(values, list):
    bad_records.report(
      place.file,
      place.line,
      f"record {place.number}, {field}",
      f"is {record_fields.json_type(values)}; give a list of passages;"
      " 'skip' leaves out the hard negatives of this record",
    )
    return ()
  passages, known = [], read_scores(record, scores, len(values))
  for i, value in enumerate(values):
    try:
      passages.append(
        records.Passage("")
        if value is None
        else _scored(read_passage(value, f"{field}[{i}]"), known[i])
      )
    except record_fields.EmptyTextError:
      passages.append(records.Passage(""))
    except record_fields.FieldError as error:
      report_hard_negative(error, place, bad_records)
  return tuple(passages)


def _scored(passage: records.Passage, score: float | None) -> records.Passage:
  """Returns a passage with a score, if there is one."""
  return passage if score is None else dataclasses.replace(passage, score=score)


def report_hard_negative(
  error: record_fields.FieldError,
  place: records.Place,
  bad_records: records.BadRecords,
) -> None:
  """Reports a bad hard negative of a good record."""
  bad_records.report(
    place.file,
    place.line,
    f"record {place.number}, {error.field}",
    f"{error.problem}; 'skip' leaves out this hard negative alone",
  )


def of_text(value: Any, where: str) -> records.Passage:
  """Makes a passage from a text; raises FieldError for any other value."""
  return records.Passage(record_fields.check_text(value, where))


def of_object(
  value: Any,
  where: str,
  id_field: str,
  note_unused: Callable[[Any, Sequence[str], str], None],
) -> records.Passage:
  """Makes a passage from an object with "text", "title" and an id.

  Title and id may be missing, null or empty.

  Args:
    value: The decoded object.
    where: The path to it, e.g. "positive_ctxs[0]"; "" for the record itself.
    id_field: The name of the id's field.
    note_unused: Receives the object, the fields that are used and the path.

  Raises:
    FieldError: if the object has no text, or a field has another type.
  """
  before = f"{where}." if where else ""
  passage = records.Passage(
    record_fields.get_text(value, "text", where),
    record_fields.optional(
      record_fields.check_text, value.get("title"), f"{before}title"
    ),
    record_fields.optional(
      record_fields.check_id, value.get(id_field), f"{before}{id_field}"
    ),
  )
  note_unused(value, ("text", "title", id_field), where)
  return passage


def written_id(passage_id: str, known: Iterable[Any]) -> str | int | None:
  """Returns an id as a record writes its ids: as a number if they are numbers.

  Other programs load the file: one field has one type.

  Args:
    passage_id: The id; "" for none.
    known: The ids that the record has in the same field.

  Returns:
    The id. An id that is not a number stays a text.
  """
  if not any(type(each) is int for each in known):
    return passage_id
  if not passage_id:
    return None
  return int(passage_id) if _NUMBER.fullmatch(passage_id) else passage_id


def one_text(passage: records.Passage) -> str:
  """Returns title and text as one text, for formats without titles."""
  return f"{passage.title} {passage.text}".strip()


def with_added(
  record: Mapping[str, Any], field: str, added: Sequence[Any]
) -> dict[str, Any]:
  """Returns a record with more values in a list, which may be missing or null.

  Raises:
    ValueError: if the field is not a list; it names the field.
  """
  values = record.get(field)
  if not isinstance(values, list | None):
    raise ValueError(
      f"{field} is {record_fields.json_type(values)}; give a list."
    )
  return {**record, field: [*(values or ()), *added]}


def emptied(record: Mapping[str, Any], *names: str) -> dict[str, Any]:
  """Returns a record whose lists of these names are empty."""
  return {**record, **{name: [] for name in names if record.get(name)}}
