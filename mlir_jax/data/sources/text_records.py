"""Reads plain text from a JSON file of records with the field `text`."""

import os
from collections.abc import Iterator, Mapping

from mlir_jax.data import records
from mlir_jax.data.sources import json_stream, record_fields


def unused_fields(path: str | os.PathLike) -> tuple[str, ...]:
  """Returns the other fields of the first record; they are not read."""
  values = json_stream.read_records(
    path, records.BadRecords("skip"), lambda value, place: value
  )
  first = next(values)
  values.close()
  if not isinstance(first, Mapping):
    return ()
  return tuple(name for name in first if name != "text")


def read(
  path: str | os.PathLike, language: str, bad_records: records.BadRecords
) -> Iterator[records.MonolingualRecord]:
  """Reads the texts of a file; memory holds one of them at a time.

  Args:
    path: A JSON file: an array, or an object on each line; plain or gzipped.
    language: The language of the text.
    bad_records: Receives bad records.

  Yields:
    The texts, in the file's order.

  Raises:
    RecordError: as `json_stream.read_records` does.
  """
  return json_stream.read_records(
    path,
    bad_records,
    lambda value, place: records.MonolingualRecord(
      record_fields.get_text(value, "text"), language
    ),
  )
