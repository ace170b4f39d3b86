"""Reads translations from a file of records with named fields."""

import os
from collections.abc import Iterator
from typing import Any

from mlir_jax.data import records
from mlir_jax.data.sources import containers, translations


def form_of(
  place: records.Place, value: Any, codes: tuple[str, str]
) -> translations.Form:
  """Returns the form of a record; RecordError if it is not known."""
  form = translations.form_of_fields(value, codes)
  if form:
    return form
  fields = ", ".join(value) if isinstance(value, dict) else "none"
  raise records.RecordError(
    records.printable(f"{place}: its form is not known; its fields: {fields}.")
    + f" {translations.EXAMPLES}"
  )


def recognize(
  path: str | os.PathLike, codes: tuple[str, str]
) -> translations.Form:
  """Recognizes the form of a file, by its first record.

  Raises:
    RecordError: if the form is not known.
  """
  place, value = containers.read_first(path)
  return form_of(place, value, codes)


def read(
  path: str | os.PathLike,
  codes: tuple[str, str],
  bad_records: records.BadRecords,
  margin: float = 0.0,
) -> Iterator[records.ParallelRecord]:
  """Reads the pairs of a file; memory holds one of them at a time.

  Args:
    path: The file; see `containers`.
    codes: The languages, in the order of the file's name.
    bad_records: Receives bad records; counts the pairs with a low margin.
    margin: The lowest margin that is kept, where records have one.

  Yields:
    The pairs, in the file's order.

  Raises:
    RecordError: for a bad record, if the policy is "error"; under any policy
      if the form is not known, or no pair can be used.
  """
  form = recognize(path, codes)
  margins = translations.Margins(margin, str(path), bad_records)
  pairs = containers.read_records(
    path, bad_records, lambda value: form.parse(value, margins)
  )
  return translations.kept(pairs, path)
