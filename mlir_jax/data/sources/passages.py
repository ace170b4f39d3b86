"""Reads the passages in a record, and adds passages to it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlir_jax.data import records
from mlir_jax.data.sources import record_fields


def read_positives(
  record: Any,
  field: str,
  read_passage: Callable[[Any, str], records.Passage],
) -> tuple[records.Passage, ...]:
  """Reads the passages that answer a record's question.

  Args:
    record: The decoded JSON object.
    field: The name of the list in the object.
    read_passage: Makes a passage from a decoded JSON value and the path to
      it, e.g. "pos[0]". It raises FieldError for a bad one.

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
  return tuple(
    read_passage(value, f"{field}[{i}]") for i, value in enumerate(values)
  )


def read_hard_negatives(
  record: Any,
  field: str,
  read_passage: Callable[[Any, str], records.Passage],
  place: records.Place,
  bad_records: records.BadRecords,
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

  Returns:
    The passages. A null passage, or one without text, has the text "".
    `store_arrays` drops it and counts it; `store_join` drops copies of a
    positive.

  Raises:
    RecordError: for a bad hard negative, if the policy is "error".
    FieldError: if the record is not an object.
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
  passages = []
  for i, value in enumerate(values):
    try:
      passages.append(
        records.Passage("")
        if value is None
        else read_passage(value, f"{field}[{i}]")
      )
    except record_fields.EmptyTextError:
      passages.append(records.Passage(""))
    except record_fields.FieldError as error:
      report_hard_negative(error, place, bad_records)
  return tuple(passages)


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
