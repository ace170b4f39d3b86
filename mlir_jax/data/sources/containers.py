"""Reads and writes the records of a file, whatever they mean.

The end of a file's name says the container: `.json` and `.jsonl` (an array, or
an object on each line), `.csv`, `.tsv` or `.parquet`. All but Parquet may be
gzipped (`.gz`).

CSV is that of RFC 4180, as pandas writes it: the first row has the names, and a
quoted cell may hold commas, quotation marks and line ends. TSV is the same with
tabs, but a row is one line.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mlir_jax.data import records
from mlir_jax.data.sources import json_stream, parquet_rows, table_rows

# Name's end to the module with `read` and `write`.
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
