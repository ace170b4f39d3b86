"""Reads plain text from a file of records with the field `text`."""

import os
from collections.abc import Iterator, Mapping

from mlir_jax.data import records
from mlir_jax.data.sources import containers, record_fields


def unused_fields(path: str | os.PathLike) -> tuple[str, ...]:
  """Returns the other fields of the first record; they are not read."""
  _, first = containers.read_first(path)
  if not isinstance(first, Mapping):
    return ()
  return tuple(name for name in first if name and name != "text")


def read(
  path: str | os.PathLike, language: str, bad_records: records.BadRecords
) -> Iterator[records.MonolingualRecord]:
  """Reads the texts of a file; memory holds one of them at a time.

  Args:
    path: The file; see `containers`.
    language: The language of the text.
    bad_records: Receives bad records.

  Yields:
    The texts, in the file's order.

  Raises:
    RecordError: as `containers.read_records` does.
  """
  return containers.read_records(
    path,
    bad_records,
    lambda value: records.MonolingualRecord(
      record_fields.get_text(value, "text"), language
    ),
  )
