"""Reads judged queries as question-passage pairs, and writes judgements.

It lets mined hard negatives be added to a data set of BEIR and the like: a
judgement of 0 is a hard negative.
"""

import collections
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from mlir_jax.data import records
from mlir_jax.data.sources import files, record_fields, text_lines, trec
from mlir_jax.data.sources import judged as judged_lib
from mlir_jax.data.sources.pairs import base, reading

_JUDGED = "judged"


class Judged(base.PairFormat):
  """A query with its judgements: passage id to relevance.

  The texts are in other files, so records are made by `JudgedPairs`.
  """

  name = "judged"
  example: ClassVar = {"query_id": "q1", _JUDGED: {"7": 1, "8": 0}}
  needs = (("query_id", _JUDGED),)
  by_id = True

  def parse(self, record, context):
    """Refuses a record, whose texts are elsewhere."""
    raise record_fields.FieldError(_JUDGED, "has no texts; read the folder")

  def with_negatives(self, record, passages, scores=None):
    """Adds judgements of 0; a passage that is judged keeps its judgement."""
    del scores
    if not all(passage.passage_id for passage in passages):
      raise ValueError(
        "A judgement needs the id of a passage, but a hard negative has none:"
        " take hard negatives from the data set's own passages."
      )
    judged = record[_JUDGED]
    added = {
      passage.passage_id: 0
      for passage in passages
      if passage.passage_id not in judged
    }
    return {**record, _JUDGED: judged | added}

  def without_negatives(self, record):
    """Removes the judgements of 0 and less."""
    relevant = {
      passage_id: relevance
      for passage_id, relevance in record[_JUDGED].items()
      if relevance > 0
    }
    return {**record, _JUDGED: relevant}


class JudgedPairs:
  """The judged queries of a split. It is used like a `reading.PairFile`.

  Attributes:
    path: The file of the judgements.
    files: All files of the split.
    seen: What the last whole pass has found; None before it.
  """

  def __init__(self, split: judged_lib.Files, language: str = "en"):
    """Names the files; they are read later.

    Args:
      split: The files of the split, such as `beir.locate(folder)["train"]`.
      language: The language of the texts.
    """
    self._split = split.unchanged()
    self._language = language
    self.seen: reading.Seen | None = None
    self.path = self._split.qrels
    self.files = self._split.all

  def read_pairs(
    self, bad_records: records.BadRecords
  ) -> Iterator[reading.Pair]:
    """Reads the queries with a positive; raises as `judged.read_pairs` does."""
    unseen = records.BadRecords("skip")  # `read_pairs` reports the bad ones.
    judgements = judged_lib.read_judgements(self._split, unseen)
    names = list(judgements.queries)
    seen = reading.Seen(Judged.name)
    for record in judged_lib.read_pairs(
      self._split, self._language, bad_records
    ):
      assert record.place
      query_id = names[record.place.number - 1]
      seen.count += 1
      seen.languages.add(record.language)
      raw = {"query_id": query_id, _JUDGED: dict(judgements.judged[query_id])}
      yield reading.Pair(raw, record)
    self.seen = seen

  def recognize(self, bad_records: records.BadRecords) -> base.PairFormat:
    """Returns the format of the records."""
    del bad_records
    return Judged()

  def describe(self, root: pathlib.Path) -> list[str]:
    """Describes the pairs as `reading.PairFile.describe` does."""
    if not self.seen:
      return []
    name = os.path.relpath(self.path, root)
    return [records.printable(line) for line in self.seen.describe(name)]

  def passages(
    self, bad_records: records.BadRecords
  ) -> Iterator[records.Passage]:
    """Yields all passages of the data set."""
    yield from judged_lib.read_passages(self._split, bad_records)

  def check(self, raw: Iterable[tuple[object, Mapping[str, Any]]]) -> None:
    """Reads all records: an id that was read can be written."""
    collections.deque(raw, maxlen=0)

  def write(
    self, target: str | os.PathLike, raw: Iterable[Mapping[str, Any]]
  ) -> None:
    """Writes judgements in the columns of this file, whole or not at all.

    All judgements of other queries are kept: those of queries without a
    positive, which `read_pairs` leaves out, and of queries that are not there.

    Args:
      target: The new file of judgements; it may be this one.
      raw: Records as in `reading.Pair.raw`.
    """
    first = next(
      line
      for _, line in text_lines.read_lines(
        self.path, records.BadRecords("skip")
      )
      if line
    )
    header, row = "", "{query}\tQ0\t{passage}\t{relevance}\n"
    if tuple(first.split()) == trec.BEIR_COLUMNS:
      header, row = f"{first}\n", "{query}\t{passage}\t{relevance}\n"
    judged, _ = trec.read_qrels(self.path, None, records.BadRecords("skip"))
    changed = {value["query_id"]: value[_JUDGED] for value in raw}
    with files.writing(target) as file:
      file.write(header.encode())
      for query_id, relevances in (judged | changed).items():
        for passage_id, relevance in relevances.items():
          line = row.format(
            query=query_id, passage=passage_id, relevance=relevance
          )
          file.write(line.encode())
