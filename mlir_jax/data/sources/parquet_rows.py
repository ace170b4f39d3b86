"""Reads and writes the rows of a Parquet file."""

import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mlir_jax.data import records
from mlir_jax.data.sources import files

_ROWS = 1000  # Rows that are in memory at a time.
_MAGIC = b"PAR1"


def _open(path: str | os.PathLike):
  """Opens a Parquet file with pyarrow.

  Raises:
    RecordError: if it is not one, or is cut.
  """
  import pyarrow as pa  # Here, because it takes a second.
  from pyarrow import parquet

  if str(path).endswith(".gz"):
    raise records.RecordError(
      f"{path} is gzipped, but Parquet compresses its columns: unpack it."
    )
  with files.open_bytes(path) as file:  # It refuses LFS pointers and archives.
    if file.read(len(_MAGIC)) != _MAGIC:
      raise records.RecordError(
        f"{path} is not a Parquet file; its name should say what it is."
      )
  if isinstance(path, files.UnchangedFile):
    path.read_hash()
  try:
    return parquet.ParquetFile(os.fspath(path))
  except (pa.ArrowInvalid, OSError) as error:
    raise records.RecordError(
      f"{path} is cut or damaged ({error}); fetch or write it again."
    ) from error


def read_values(
  path: str | os.PathLike, bad_records: records.BadRecords
) -> Iterator[tuple[records.Place, dict[str, Any]]]:
  """Yields the place and the values of each row; a row counts as a line.

  Args:
    path: The file.
    bad_records: Not used: all rows can be decoded, or the file is damaged.

  Raises:
    RecordError: if the file is not Parquet, is cut or is damaged.
  """
  import pyarrow as pa

  del bad_records
  with _open(path) as file:
    number = 0
    try:
      for batch in file.iter_batches(batch_size=_ROWS):
        for value in batch.to_pylist():
          number += 1
          yield records.Place(str(path), number, number), value
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
      raise records.RecordError(
        f"{path}: after record {number}: the file is damaged ({error}); fetch"
        " or write it again."
      ) from error


def write_values(
  path: str | os.PathLike,
  values: Iterable[Mapping[str, Any]],
  like: str | os.PathLike,
) -> None:
  """Writes rows; see `containers.write`.

  Columns keep their types and order; new ones follow. An object may have more
  fields than those of the file; its column gets them, too.

  Raises:
    ValueError: if a value does not have its column's type.
  """
  import pyarrow as pa
  from pyarrow import parquet

  with _open(like) as file:
    known = file.schema_arrow
  fields = {field.name: field for field in known}
  folder = os.path.dirname(os.path.abspath(path))
  os.makedirs(folder, exist_ok=True)
  # Only the last row completes the columns, so the rows wait here.
  with tempfile.TemporaryFile(dir=folder) as waiting:
    batches = 0
    rows_left = iter(values)
    while rows := list(itertools.islice(rows_left, _ROWS)):
      batch = _to_batch(path, rows, fields)
      with pa.ipc.new_stream(waiting, batch.schema) as stream:
        stream.write_batch(batch)
      batches += 1
    waiting.seek(0)
    # Metadata describes the columns that there were.
    is_same = list(fields.values()) == list(known)
    schema = pa.schema(
      fields.values(), metadata=known.metadata if is_same else None
    )
    with (
      files.writing(path) as file,
      parquet.ParquetWriter(file, schema) as writer,
    ):
      for _ in range(batches):
        with pa.ipc.open_stream(waiting) as stream:
          (batch,) = stream
        arrays = [
          batch.column(name).cast(field.type)
          if name in batch.schema.names
          else pa.nulls(batch.num_rows, field.type)
          for name, field in fields.items()
        ]
        writer.write_batch(pa.record_batch(arrays, schema))


def _widened(known: Any, values: Iterable[Any]) -> Any:
  """Returns a type that also has the fields of new values.

  Without it, pyarrow leaves out a field that the type lacks, in silence.

  Args:
    known: The type of a column, or of a part of it.
    values: Its values.
  """
  import pyarrow as pa

  if pa.types.is_list(known) or pa.types.is_large_list(known):
    inner = itertools.chain.from_iterable(v for v in values if v is not None)
    item = known.value_field
    widened = item.with_type(_widened(item.type, inner))
    if widened == item:
      return known
    return (
      pa.list_(widened) if pa.types.is_list(known) else pa.large_list(widened)
    )
  if not pa.types.is_struct(known):
    return known
  objects = [value for value in values if isinstance(value, Mapping)]
  fields = {field.name: field for field in known}
  for name in dict.fromkeys(itertools.chain.from_iterable(objects)):
    inner = [value.get(name) for value in objects]
    if name in fields:
      of_field = _widened(fields[name].type, inner)
      fields[name] = fields[name].with_type(of_field)
    else:
      of_field = pa.array(inner).type
      if not pa.types.is_null(of_field):
        fields[name] = pa.field(name, of_field)
  return pa.struct(list(fields.values()))


def _to_batch(path: str | os.PathLike, rows: list, fields: dict[str, Any]):
  """Makes a batch of rows; adds new columns, and new fields of objects."""
  import pyarrow as pa

  columns = {}
  for name in dict.fromkeys(itertools.chain.from_iterable(rows)):
    values = [row.get(name) for row in rows]
    try:
      if name in fields:
        fields[name] = fields[name].with_type(
          _widened(fields[name].type, values)
        )
      known = fields[name].type if name in fields else None
      columns[name] = pa.array(values, known)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
      raise ValueError(f"{path}: {name}: {error}.") from error
    if not pa.types.is_null(columns[name].type):
      fields.setdefault(name, pa.field(name, columns[name].type))
  return pa.RecordBatch.from_pydict(columns)
