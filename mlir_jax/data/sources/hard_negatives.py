"""Reads a record's hard negatives, so that a bad one costs itself alone."""

from collections.abc import Callable

from mlir_jax.data import records
from mlir_jax.data.sources import record_fields


def read(
  values: object,
  field: str,
  read_passage: Callable[[object, str], records.Passage],
  place: records.Place,
  bad: records.BadRecords,
) -> tuple[records.Passage, ...]:
  """Reads the hard negatives of one record, of any format.

  Args:
    values: The decoded JSON value: a list; null is an empty one.
    field: The list's field, in the file's own spelling.
    read_passage: (value, path to it, e.g. "neg[0]") -> passage; it raises
      FieldError.
    place: Where the record stands.
    bad: Receives each that cannot be used; with "skip", the others are kept.
      It also receives a value that is not a list; then there are none.

  Returns:
    The passages. A null passage, or one without text, has the text "": the
    token store drops and counts it, as it does copies of a positive.

  Raises:
    RecordError: for a bad one, if the policy is "error".
  """
  if values is None:
    return ()
  if not isinstance(values, list):
    bad.report(
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
      bad.report(
        place.file,
        place.line,
        f"record {place.number}, {error.field}",
        f"{error.problem}; 'skip' leaves out this hard negative alone",
      )
  return tuple(passages)
