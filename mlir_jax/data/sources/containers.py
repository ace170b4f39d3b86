"""Reads and writes the records of a file, whatever they mean.

The end of a file's name says the container: `.json` and `.jsonl` (an array, or
an object on each line), `.csv`, `.tsv` or `.parquet`. All but Parquet may be
gzipped (`.gz`).

CSV is that of RFC 4180, as pandas writes it: the first row has the names, and a
quoted cell may hold commas, quotation marks and line ends. TSV is the same with
tabs, but a row is one line.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from mlir_jax.data import records
from mlir_jax.data.sources import (
  json_stream,
  parquet_rows,
  record_fields,
  table_rows,
)

_Record = TypeVar("_Record")

# Name's end to the module with `read_values`, `check_values` and
# `write_values`.
_CONTAINERS = {
  "json": json_stream,
  "jsonl": json_stream,
  "csv": table_rows,
  "tsv": table_rows,
  "parquet": parquet_rows,
}
ENDINGS = tuple(_CONTAINERS)


def kind(path: str | os.PathLike) -> str:
  """Returns the end of a file's name that says its container, without ".gz".

  Raises:
    ValueError: if it is not one of `ENDINGS`.
  """
  name = os.path.basename(path).removesuffix(".gz")
  ending = name.rpartition(".")[2]
  if ending not in _CONTAINERS or ending == name:
    raise ValueError(f"{path} does not end in .{', .'.join(ENDINGS)}.")
  return ending


def read(
  path: str | os.PathLike, bad_records: records.BadRecords
) -> Iterator[tuple[records.Place, Any]]:
  """Yields the place and the decoded value of each record.

  Args:
    path: The file.
    bad_records: Receives lines or rows that are not records.

  Raises:
    RecordError: for a bad line or row, if the policy is "error"; under any
      policy if the file is cut or damaged so that what follows is not known.
  """
  return _CONTAINERS[kind(path)].read_values(path, bad_records)


def read_records(
  path: str | os.PathLike,
  bad_records: records.BadRecords,
  parse: Callable[[Any], _Record],
) -> Iterator[_Record]:
  """Reads the records of a file.

  Args:
    path: The file.
    bad_records: Receives the records that `parse` refuses, and those of `read`.
    parse: Makes a record of a decoded value. It raises FieldError for a value
      that cannot be used; the functions of `record_fields` do.

  Yields:
    The records, in the file's order.

  Raises:
    RecordError: for a bad record, if the policy is "error"; under any policy
      as `read` does, or if no record can be used.
  """
  bad_records = records.BadRecordsOfFile(bad_records)
  return parse_all(read(path, bad_records), path, bad_records, parse)


def parse_all(
  values: Iterable[tuple[records.Place, Any]],
  path: str | os.PathLike,
  bad_records: records.BadRecordsOfFile,
  parse: Callable[[Any], _Record],
) -> Iterator[_Record]:
  """Makes records of decoded values; see `read_records`.

  Args:
    values: The place and the value of each record.
    path: What messages call the file.
    bad_records: Receives the records that `parse` refuses.
    parse: As in `read_records`.

  Raises:
    RecordError: for a bad record, if the policy is "error"; under any policy if
      no record can be used.
  """
  good = 0
  for place, value in values:
    try:
      record = parse(value)
    except record_fields.FieldError as error:
      bad_records.report(
        place.file,
        place.line,
        f"record {place.number}, {error.field}",
        error.problem,
      )
      continue
    good += 1
    yield record
  bad_records.check_some(path, good)
  if not good:
    raise records.RecordError(
      f"{path} holds no record; remove the file, or write it again."
    )


def read_first(path: str | os.PathLike) -> tuple[records.Place, Any]:
  """Returns the place and the value of the first record that can be decoded.

  Raises:
    RecordError: if there is none, or as `read` does.
  """
  bad_records = records.BadRecordsOfFile(records.BadRecords("skip"))
  for place, value in read(path, bad_records):
    return place, value
  bad_records.check_some(path, 0)
  raise records.RecordError(
    f"{path} holds no record; remove the file, or write it again."
  )


def check(
  values: Iterable[tuple[object, Mapping[str, Any]]], like: str | os.PathLike
) -> None:
  """Checks that `write` can write records; nothing is written.

  Args:
    values: Records, each after its place, as messages show it.
    like: As in `write`.

  Raises:
    ValueError: if a value cannot be written; it names the place and the field.
  """
  _CONTAINERS[kind(like)].check_values(values, like)


def write(
  path: str | os.PathLike,
  values: Iterable[Mapping[str, Any]],
  like: str | os.PathLike,
) -> None:
  """Writes records, whole or not at all.

  Args:
    path: The new file; it may be `like`.
    values: The records, as `read` yields them.
    like: The file that the records were read from: JSON is an array or lines
      as there, and columns of Parquet have the types that they have there.

  Raises:
    ValueError: if the name says another container than that of `like`, or a
      value cannot be written.
  """
  if kind(path) != kind(like):
    raise ValueError(
      f"{path} is another kind of file than {like}; its name should end in"
      f" .{kind(like)}."
    )
  _CONTAINERS[kind(path)].write_values(path, values, like)
