"""Builds shards with Apache Beam, on this machine or on a cluster.

Beam reads the files, brings the records of a shard together and makes the
shard, with the functions that a local build calls. All workers need this
package, the collection's files, and the folder in which the store is built, at
the same paths.
"""

import contextlib
import os
import pathlib
import shlex
import tempfile
from collections.abc import Iterable, Iterator, Sequence

from mlir_jax.command_line import refusal
from mlir_jax.data import records
from mlir_jax.data.shards import partition
from mlir_jax.data.shards import shard as shard_lib
from mlir_jax.storage import writing

_REFUSED = "refused.txt"  # In a folder of jobs: the message for the user.

# Stream, part, number of the record and its line.
_Row = tuple[str, int, int, str]


def check_installed() -> None:
  """Refuses to start without Beam.

  Raises:
    ValueError: if it is not installed.
  """
  try:
    import apache_beam  # noqa: F401 # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise ValueError(
      "--runner=beam needs Apache Beam, which is not installed: pip install"
      " 'mlir_jax[beam]'."
    ) from error


def run(
  open_collection: partition.Opener,
  jobs: Sequence[partition.PartJob],
  job_folder: str,
  recipe: shard_lib.Recipe,
  shard_folders: Sequence[str],
  options: str,
) -> None:
  """Makes shards with Beam.

  Args:
    open_collection: Opens the collection; it is pickled.
    jobs: From `partition.plan_jobs`.
    job_folder: Receives a folder for each job, with its meta.json.
    recipe: How texts become tokens; it is pickled.
    shard_folders: The folder of each shard. Those that are there stay.
    options: Beam's own flags, in one text as on a command line.

  Raises:
    ValueError: as the readers do, for the first file that has a bad record; or
      if a shard cannot be made.
  """
  import apache_beam as beam  # pyright: ignore[reportMissingImports]
  from apache_beam.options import (  # pyright: ignore[reportMissingImports]
    pipeline_options,
  )

  missing = [
    number
    for number, folder in enumerate(shard_folders)
    if not os.path.exists(folder)
  ]
  if not missing:
    return
  for refused in _refusals(job_folder):  # Of an earlier run.
    refused.unlink()
  try:
    with beam.Pipeline(
      options=pipeline_options.PipelineOptions(shlex.split(options))
    ) as pipeline:
      rows = (
        pipeline
        | "Jobs" >> beam.Create(list(enumerate(jobs)))
        | "SpreadJobs" >> beam.Reshuffle()
        | "Read"
        >> beam.FlatMap(
          _read, open_collection, job_folder, len(shard_folders), missing
        )
      )
      # A shard may have no record.
      empty = pipeline | "Shards" >> beam.Create([(n, None) for n in missing])
      _ = (
        (rows, empty)
        | beam.Flatten()
        | "ByShard" >> beam.GroupByKey()
        | "Make" >> beam.Map(_make, recipe, list(shard_folders), job_folder)
      )
  except Exception:
    # Beam puts the error of a worker into one of its own.
    for refused in _refusals(job_folder):
      raise records.RecordError(refused.read_text(encoding="utf-8")) from None
    raise


def _refusals(job_folder: str) -> list[pathlib.Path]:
  """Returns the files with messages for the user, the first job's first."""
  return sorted(pathlib.Path(job_folder).glob(f"*/{_REFUSED}"))


def _read(
  numbered_job: tuple[int, partition.PartJob],
  open_collection: partition.Opener,
  job_folder: str,
  shards: int,
  missing: Sequence[int],
) -> Iterator[tuple[int, _Row | None]]:
  """Yields the shard of each record of a job, and the record."""
  number, job = numbered_job
  folder = os.path.join(job_folder, f"{number:05}")
  collection, bad_records = open_collection()
  bad_records.drain()  # As in `partition.spill`.
  wanted, counts = set(missing), [0] * shards
  with _refusing(folder):
    for stream, part, place, record in partition.read_parts(
      collection, job, bad_records
    ):
      shard = partition.shard_of(stream, part, place, shards)
      counts[shard] += 1
      if shard in wanted:
        yield shard, (stream, part, place, partition.encode(record))
  partition.write_meta(folder, collection, job, bad_records, counts)


def _make(
  shard_and_rows: tuple[int, Iterable[_Row | None]],
  recipe: shard_lib.Recipe,
  shard_folders: Sequence[str],
  job_folder: str,
) -> None:
  """Makes a shard of its records, which come in any order."""
  shard, rows = shard_and_rows
  with tempfile.TemporaryDirectory() as folder:
    order = {stream: i for i, stream in enumerate(records.STREAMS)}
    found = [row for row in rows if row is not None]
    found.sort(key=lambda row: (order[row[0]], *row[1:3]))
    partition.write_lines(folder, shard, found)
    with _refusing(os.path.join(job_folder, f"shard-{shard:05}")):
      shard_lib.make(
        recipe, [folder], shard, shard_folders[shard], progress=lambda _: None
      )


@contextlib.contextmanager
def _refusing(folder: str) -> Iterator[None]:
  """Keeps the message of an error for the user, whatever Beam makes of it."""
  try:
    yield
  except Exception as error:
    if refusal.is_for_user(error):
      os.makedirs(folder, exist_ok=True)
      writing.write_aside(os.path.join(folder, _REFUSED), str(error))
    raise
