"""Keeps the passages of corpus files, which are found by their ids.

The passages are in a temporary database on the disk: a corpus may be larger
than the memory.
"""

import pathlib
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlir_jax.data import records
from mlir_jax.data.sources import containers, passages, record_fields
from mlir_jax.data.sources import files as files_lib
from mlir_jax.data.sources.pairs import base

# The names of the id in Tevatron's, BEIR's and other corpora.
_IDS = ("docid", "_id", "id")


class _Recorded(records.BadRecordsOfFile):
  """Keeps the reports, too, so that a later pass can report them again."""

  def __init__(
    self,
    bad_records: records.BadRecords,
    reports: list[tuple[str, int, str, str]],
  ):
    super().__init__(bad_records)
    self._reports = reports

  def report(self, path: str, line: int, field: str, problem: str) -> None:
    """Raises or counts one bad record; see `BadRecords.report`."""
    super().report(path, line, field, problem)
    self._reports.append((path, line, field, problem))


class CorpusFiles:
  """The passages of some files; they are read when the first one is needed.

  Attributes:
    files: The files.
    unused: The fields that hold something and are not used.
  """

  def __init__(self, files: Sequence[files_lib.UnchangedFile]):
    self.files = tuple(files)
    self.unused: set[str] = set()
    self._reports: list[tuple[str, int, str, str]] = []
    self._reader = ""
    self._database: sqlite3.Connection | None = None

  def read(self, bad_records: records.BadRecords, reader: str = "") -> None:
    """Reads the files, unless that was done before.

    Args:
      bad_records: Receives passages that cannot be used: without a text or an
        id, or with the id of another passage.
      reader: Names who reads. Each pass of the first reader reports the bad
        passages; the passes of others do not.

    Raises:
      RecordError: for a bad passage, if the policy is "error"; under any policy
        if no passage of a file can be used.
    """
    if self._database:
      for report in self._reports if reader == self._reader else ():
        bad_records.report(*report)
      return
    # SQLite removes the file when the connection is closed.
    database = sqlite3.connect("", check_same_thread=False)
    database.execute(
      "CREATE TABLE passages (id TEXT PRIMARY KEY, title TEXT, text TEXT,"
      " place TEXT) WITHOUT ROWID"
    )
    for path in self.files:
      recorded = _Recorded(bad_records, self._reports)
      self._read_file(path, database, recorded)
    database.commit()
    self._database, self._reader = database, reader

  def describe(self, root: pathlib.Path) -> list[str]:
    """Describes in lines whether the files were read.

    Args:
      root: The folder to which the files' names are relative.
    """
    names = ", ".join(
      pathlib.Path(path).relative_to(root).as_posix() for path in self.files
    )
    if not self._database:
      return [f"Not read: {names}. No pairs refer to passages by id."]
    if self.unused:
      return [f"{names}: fields not used: {', '.join(sorted(self.unused))}"]
    return []

  def _read_file(
    self,
    path: files_lib.UnchangedFile,
    database: sqlite3.Connection,
    bad_records: records.BadRecordsOfFile,
  ) -> None:
    good = 0
    for place, value in containers.read(path, bad_records):
      try:
        passage = self._parse(value)
        row = (passage.passage_id, passage.title, passage.text, str(place))
        if not database.execute(
          "INSERT OR IGNORE INTO passages VALUES (?, ?, ?, ?)", row
        ).rowcount:
          _check_same(database, row)
      except record_fields.FieldError as error:
        bad_records.report(
          place.file,
          place.line,
          f"record {place.number}, {error.field}",
          error.problem,
        )
        continue
      good += 1
    bad_records.check_some(path, good)

  def _parse(self, value: Any) -> records.Passage:
    """Makes the passage of a record; raises FieldError for a bad one."""
    there = [
      name for name in _IDS if isinstance(value, Mapping) and name in value
    ]
    id_field = there[0] if there else _IDS[0]
    if len(there) > 1:
      raise record_fields.FieldError(
        "record", f"has {' and '.join(there)}; keep the one that is the id"
      )
    passage_id = record_fields.check_id(
      record_fields.get_field(value, id_field), id_field
    )
    passage = passages.of_object(value, "", id_field, self._note_unused)
    assert passage.passage_id == passage_id
    return passage

  def _note_unused(self, value: Any, used: Iterable[str], where: str) -> None:
    base.note_unused(self.unused, value, used, where)

  def find(self, passage_id: str, field: str) -> records.Passage:
    """Returns the passage of an id; see `base.Corpus`."""
    assert self._database, "It is read before."
    row = self._database.execute(
      "SELECT title, text FROM passages WHERE id = ?", (passage_id,)
    ).fetchone()
    if not row:
      names = ", ".join(pathlib.Path(path).name for path in self.files)
      raise record_fields.FieldError(
        field,
        f"is the id {record_fields.show(passage_id)}, which {names} lacks",
      )
    return records.Passage(row[1], row[0], passage_id)

  def __iter__(self):
    """Yields all passages, in the order of their ids."""
    assert self._database, "It is read before."
    for passage_id, title, text in self._database.execute(
      "SELECT id, title, text FROM passages ORDER BY id"
    ):
      yield records.Passage(text, title, passage_id)


def _check_same(
  database: sqlite3.Connection, row: tuple[str, str, str, str]
) -> None:
  """Raises FieldError if the id of a row has another passage."""
  title, text, place = database.execute(
    "SELECT title, text, place FROM passages WHERE id = ?", row[:1]
  ).fetchone()
  if (title, text) != row[1:3]:
    raise record_fields.FieldError(
      "id",
      f"{record_fields.show(row[0])} has another text in {place}; rename one",
    )
