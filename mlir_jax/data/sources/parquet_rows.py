"""Reads and writes the rows of a Parquet file."""

import bisect
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
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


def _schema(path: str | os.PathLike) -> Any:
  with _open(path) as file:
    return file.schema_arrow


def check_values(
  values: Iterable[tuple[object, Mapping[str, Any]]], like: str | os.PathLike
) -> None:
  """Checks that rows can be written; see `containers.check`."""
  fields = {field.name: field for field in _schema(like)}
  for _ in _batches(values, fields):
    pass


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

  known = _schema(like)
  fields = {field.name: field for field in known}
  numbered = (
    (f"{path}: record {number}", value)
    for number, value in enumerate(values, start=1)
  )
  folder = os.path.dirname(os.path.abspath(path))
  os.makedirs(folder, exist_ok=True)
  # Only the last row completes the columns, so the rows wait here.
  with tempfile.TemporaryFile(dir=folder) as waiting:
    batches = 0
    for batch in _batches(numbered, fields):
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

  Without it, pyarrow leaves out a field that the type lacks, in silence. A type
  of nulls, which is that of empty lists, becomes the type of the values; whole
  numbers become float64 if a value is not whole.

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
  if pa.types.is_null(known):
    return pa.array(list(values)).type
  if pa.types.is_integer(known):
    is_real = any(isinstance(value, float) for value in values)
    return pa.float64() if is_real else known
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


def _batches(
  values: Iterable[tuple[object, Mapping[str, Any]]], fields: dict[str, Any]
) -> Iterator[Any]:
  """Yields the rows in batches.

  Args:
    values: The rows, each after its place.
    fields: The columns by name. New columns, and new fields of objects, are
      added.

  Raises:
    ValueError: if a value does not have its column's type.
  """
  left = iter(values)
  while placed := list(itertools.islice(left, _ROWS)):
    places, rows = zip(*placed, strict=True)
    yield _to_batch(places, rows, fields)


def _to_column(values: Sequence[Any], known: Any) -> Any:
  """Makes an array of values.

  Args:
    values: The values.
    known: The column, if there is one; its type is widened.
  """
  import pyarrow as pa

  return pa.array(values, _widened(known.type, values) if known else None)


def _to_batch(
  places: Sequence[object],
  rows: Sequence[Mapping[str, Any]],
  fields: dict[str, Any],
):
  """Makes a batch of rows; see `_batches`."""
  import pyarrow as pa

  columns = {}
  for name in dict.fromkeys(itertools.chain.from_iterable(rows)):
    values = [row.get(name) for row in rows]
    known = fields.get(name)

    def fails(count: int, values=values, known=known) -> bool:
      try:
        _to_column(values[:count], known)
      except (pa.ArrowInvalid, pa.ArrowTypeError):
        return True
      return False

    try:
      columns[name] = _to_column(values, known)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
      counts = range(1, len(values) + 1)
      place = places[bisect.bisect_left(counts, True, key=fails)]
      raise ValueError(f"{place}, {name}: {error}.") from error
    if known:
      fields[name] = known.with_type(columns[name].type)
    if not pa.types.is_null(columns[name].type):
      fields.setdefault(name, pa.field(name, columns[name].type))
  return pa.RecordBatch.from_pydict(columns)
