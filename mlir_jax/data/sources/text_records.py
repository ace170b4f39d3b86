"""Reads plain text from a file of records with the field `text`."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from mlir_jax.data import languages, records
from mlir_jax.data.sources import containers, record_fields


def unused_fields(path: str | os.PathLike) -> tuple[str, ...]:
  """Returns the other fields of the first record; they are not read."""
  _, first = containers.read_first(path)
  if not isinstance(first, Mapping):
    return ()
  # "" is the column of a row's number.
  used = ("", "text", *record_fields.LANGUAGE_FIELDS)
  return tuple(name for name in first if name not in used)


def parse(value: Any, language: str) -> records.MonolingualRecord:
  """Makes the record of a decoded value.

  Args:
    value: An object with the field `text`. It may say its language.
    language: The language that the file's name or the config says.

  Raises:
    FieldError: if there is no text, or the object says another language.
  """
  text = record_fields.get_text(value, "text")
  for field in record_fields.LANGUAGE_FIELDS:
    said = record_fields.optional(
      record_fields.check_text, value.get(field), field
    )
    try:
      if said and languages.code_of_tag(said) != language:
        raise record_fields.FieldError(
          field,
          f"says {record_fields.show(said)}, but the name of the file or the"
          f" config says {language}; repair one",
        )
    except ValueError as error:
      if isinstance(error, record_fields.FieldError):
        raise
      raise record_fields.FieldError(field, str(error)) from None
  return records.MonolingualRecord(text, language)


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
    lambda value: parse(value, language),
  )
