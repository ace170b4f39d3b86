"""Writes the records of a collection to disk, divided into shards.

A record's shard is a hash of its place: the stream, the number of its part (a
file, in the order of the names) and its own number among the part's good
records. So it depends neither on the format nor on the name of the file.
"""

import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from mlir_jax.data import records
from mlir_jax.storage import reading, writing

# Opens a collection, with the bad records of what is read.
Opener = Callable[[], tuple[records.Collection, records.BadRecords]]

# The stream and the number of each part that one process reads, in order.
PartJob = Sequence[tuple[str, int]]

_BUFFERED = 32_000_000  # Characters that wait to be written.
_STEP = 1000  # Records between two reports of progress.
_MEND = "Delete the folder and prepare again."


def parts_of(
  collection: records.Collection,
) -> dict[str, Sequence[records.Part]]:
  """Returns the parts of each stream; a collection may not name them."""
  if collection.parts is not None:
    return {
      stream: collection.parts.get(stream, ()) for stream in records.STREAMS
    }
  streams = {stream: getattr(collection, stream) for stream in records.STREAMS}
  return {
    # The collection itself knows where to report bad records.
    stream: [records.Part((), lambda _, read=read: iter(read()))]
    for stream, read in streams.items()
  }


def plan_jobs(
  parts: Mapping[str, Sequence[records.Part]],
) -> list[list[tuple[str, int]]]:
  """Divides the parts into jobs, each for one process.

  Parts that share a file are one job: it reads a corpus of passages, or the
  English side of many translations, and counts the bad records there once.

  Returns:
    The stream and the number of each part of each job, in order.
  """
  jobs: list[list[tuple[str, int]]] = []
  job_of: dict[str, int] = {}  # Of a file.
  for stream, number, part in _numbered(parts):
    paths = [os.fspath(file) for file in part.files]
    found = {job_of[path] for path in paths if path in job_of}
    first = min(found, default=len(jobs))
    if first == len(jobs):
      jobs.append([])
    for other in found - {first}:
      jobs[first] += jobs[other]
      jobs[other] = []
      job_of = {p: first if j == other else j for p, j in job_of.items()}
    jobs[first].append((stream, number))
    job_of |= dict.fromkeys(paths, first)
  order = [(stream, number) for stream, number, _ in _numbered(parts)]
  return [sorted(job, key=order.index) for job in jobs if job]


def _numbered(
  parts: Mapping[str, Sequence[records.Part]],
) -> Iterator[tuple[str, int, records.Part]]:
  for stream in records.STREAMS:
    for number, part in enumerate(parts[stream]):
      yield stream, number, part


def shard_of(stream: str, part: int, number: int, shards: int) -> int:
  """Returns the shard of a record.

  Args:
    stream: The stream.
    part: The number of the part in the stream.
    number: The number of the record among the part's good records.
    shards: How many shards there are.
  """
  key = f"{stream}/{part}/{number}".encode()
  digest = hashlib.blake2b(key, digest_size=8).digest()
  return int.from_bytes(digest, "little") % shards


def read_parts(
  collection: records.Collection,
  job: PartJob,
  bad_records: records.BadRecords,
) -> Iterator[tuple[str, int, int, Any]]:
  """Yields stream, part, number and record of each record of a job."""
  parts = parts_of(collection)
  for stream, part in job:
    for number, record in enumerate(parts[stream][part].read(bad_records)):
      yield stream, part, number, record


def spill(
  open_collection: Opener,
  job: PartJob,
  folder: str,
  shards: int,
  *,
  progress: Callable[[int], object],
) -> None:
  """Reads the parts of a job once and writes their records, by shard.

  Args:
    open_collection: Opens the collection.
    job: From `plan_jobs`.
    folder: Where to write; whole or not at all. Nothing is done if it is there.
    shards: The number of shards.
    progress: Receives numbers of records.

  Raises:
    RecordError: as the readers do.
  """
  if os.path.exists(folder):
    return
  collection, bad_records = open_collection()
  bad_records.drain()  # A tokenizer may have read the same records.
  counts, new = [0] * shards, 0
  with writing.folder_aside(folder) as aside:
    buffers: dict[pathlib.Path, list[str]] = {}
    waiting = 0
    for stream, part, number, record in read_parts(
      collection, job, bad_records
    ):
      shard = shard_of(stream, part, number, shards)
      line = encode(record)
      path = _spilled(aside, stream, part, shard)
      buffers.setdefault(path, []).append(line)
      counts[shard] += 1
      new, waiting = new + 1, waiting + len(line)
      if new == _STEP:
        progress(new)
        new = 0
      if waiting > _BUFFERED:
        _write(buffers)
        waiting = 0
    _write(buffers)
    progress(new)
    write_meta(str(aside), collection, job, bad_records, counts)


def write_lines(
  folder: str, shard: int, rows: Iterable[tuple[str, int, int, str]]
) -> None:
  """Writes records for `read_shard`.

  Args:
    folder: Where to write.
    shard: The shard of all of them.
    rows: Stream, part, number and line of each record, sorted by the stream and
      these numbers.
  """
  for (stream, part), group in itertools.groupby(rows, lambda row: row[:2]):
    path = _spilled(pathlib.Path(folder), stream, part, shard)
    _write({path: [line for *_, line in group]})


def write_meta(
  folder: str,
  collection: records.Collection,
  job: PartJob,
  bad_records: records.BadRecords,
  counts: Sequence[int],
) -> None:
  """Writes what `read_meta` returns.

  Args:
    folder: The folder of the job.
    collection: The collection that was read.
    job: The job.
    bad_records: The bad records of the job; they are drained.
    counts: The number of records of each shard.
  """
  parts = [parts_of(collection)[stream][number] for stream, number in job]
  meta = {
    "records": counts,
    "bad_records": bad_records.drain(),
    "notes": [line for part in parts for line in part.notes()],
    "files": {
      os.fspath(file): file.sha256 for part in parts for file in part.files
    },
  }
  writing.write_aside(f"{folder}/meta.json", json.dumps(meta))


def read_meta(folder: str | os.PathLike) -> dict[str, Any]:
  """Returns what reading a job has found, besides the records.

  It has "records", their number in each shard; "bad_records"; "notes"; and
  "files", the hashes of the files.
  """
  return reading.read_json(f"{folder}/meta.json", mend=_MEND)


def read_shard(
  folders: Sequence[str], stream: str, shard: int
) -> Iterator[Any]:
  """Yields the records of a stream in a shard, by part and number.

  Args:
    folders: The folders of all jobs.
    stream: The stream.
    shard: The shard.
  """
  found = [
    path
    for folder in folders
    for path in pathlib.Path(folder).glob(f"{stream}.*.{shard:05}.jsonl")
  ]
  for path in sorted(found, key=lambda path: path.name):
    with open(path, encoding="utf-8", newline="\n") as file:
      for line in file:
        yield decode(stream, json.loads(line))


def _fields(record: Any) -> list:
  """Returns the values of a record, a dataclass that JSON does not know."""
  return [getattr(record, name) for name in record.__slots__]


# Returns a record as a line of JSON, for `decode`.
encode = json.JSONEncoder(ensure_ascii=False, default=_fields).encode


def decode(stream: str, values: list) -> Any:
  """Returns the record of a stream whose fields a line of JSON holds."""
  if stream == "parallel":
    return records.ParallelRecord(*values)
  if stream == "monolingual":
    return records.MonolingualRecord(*values)
  question, positives, negatives, language, place, *others = values
  return records.RetrievalRecord(
    question,
    tuple(records.Passage(*each) for each in positives),
    tuple(records.Passage(*each) for each in negatives),
    language,
    place and records.Place(*place),
    *others,
  )


def _spilled(
  folder: pathlib.Path, stream: str, part: int, shard: int
) -> pathlib.Path:
  return folder / f"{stream}.{part:05}.{shard:05}.jsonl"


def _write(buffers: dict[pathlib.Path, list[str]]) -> None:
  """Appends the lines to their files; few files are open at a time."""
  for path, lines in buffers.items():
    with open(path, "a", encoding="utf-8", newline="\n") as file:
      file.writelines(f"{line}\n" for line in lines)
  buffers.clear()
