"""Reads queries that are judged over passages: a test, or pairs to train on."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from mlir_jax.data import records
from mlir_jax.data.sources import files, record_fields, text_lines, trec


class Names(NamedTuple):
  """What messages call the parts of a judged collection."""

  docs: str
  queries: str
  qrels: str


@dataclasses.dataclass(frozen=True)
class Files:
  """The files of a split.

  Attributes:
    docs: The files of the passages. An id is in one of them only.
    queries: The file of the queries.
    qrels: The file of the judgements, see `trec.read_qrels`.
    parse_passage: Makes a passage of a line; raises FieldError.
    read_queries: Reads query id to query, as `trec.read_queries` does.
    of_all_splits: Whether the file of the queries holds those of other splits,
      too. Only the judged ones are of this split then.
    hidden: Whether the judgements are not public. The file of the judgements is
      then empty, and all queries are searched.
  """

  docs: tuple[os.PathLike, ...]
  queries: os.PathLike
  qrels: os.PathLike
  parse_passage: Callable[[str], records.Passage]
  read_queries: Callable[
    [str | os.PathLike, records.BadRecords], dict[str, str]
  ] = trec.read_queries
  of_all_splits: bool = False
  hidden: bool = False

  @property
  def names(self) -> Names:
    """The paths of the files; of several files of passages, their folder."""
    first, *others = map(pathlib.Path, self.docs)
    return Names(
      str(first.parent if others else first),
      os.fspath(self.queries),
      os.fspath(self.qrels),
    )

  @property
  def all(self) -> tuple[os.PathLike, ...]:
    """All files of the split."""
    return *self.docs, self.queries, self.qrels

  def unchanged(self) -> "Files":
    """Returns the same files, which must hold the same at each reading."""
    return dataclasses.replace(
      self,
      docs=tuple(map(_unchanged, self.docs)),
      queries=_unchanged(self.queries),
      qrels=_unchanged(self.qrels),
    )


def _unchanged(path: os.PathLike) -> files.UnchangedFile:
  return files.UnchangedFile(pathlib.Path(path))


def _name(path: os.PathLike) -> str:
  return os.path.basename(path)


def make_passage(value: Any, passage_id: str) -> records.Passage:
  """Makes a passage of an object with the fields text and title.

  A passage may lack its title. If it has a title alone, this is its text.

  Raises:
    FieldError: if there is no text.
  """
  title = ""
  if isinstance(value, Mapping):
    title = record_fields.optional(
      record_fields.check_text, value.get("title"), "title"
    )
  try:
    text = record_fields.get_text(value, "text")
  except record_fields.EmptyTextError:
    if not title:
      raise
    title, text = "", title
  return records.Passage(text, title, passage_id)


def iterate_passages(
  found: Files,
  bad_records: records.BadRecords,
  wanted: Collection[str] | None = None,
  check_ids: bool = True,
) -> Iterator[records.Passage]:
  """Yields passages, in the order of the files.

  Args:
    found: The files of a split.
    bad_records: Receives passages that cannot be used.
    wanted: The ids of the passages that are yielded; None for all.
    check_ids: Whether an id that is yielded twice is a bad record. Memory then
      holds all ids that are yielded.
  """
  lines: dict[str, int | str] = {}
  for path in found.docs:

    def parse(line: str, number: int, path=path) -> records.Passage | None:
      passage = found.parse_passage(line)
      if wanted is not None and passage.passage_id not in wanted:
        return None
      if check_ids:
        trec.check_new_id(passage.passage_id, lines, "id")
        several = len(found.docs) > 1
        lines[passage.passage_id] = (
          f"{number} of {_name(path)}" if several else number
        )
      return passage

    for passage in text_lines.read_records(path, bad_records, parse):
      if passage:
        yield passage


def read_passages(
  found: Files, bad_records: records.BadRecords
) -> tuple[records.Passage, ...]:
  """Reads all passages.

  Raises:
    RecordError: for a bad record, if the policy is "error"; under any policy if
      there is no passage.
  """
  passages = tuple(iterate_passages(found, bad_records))
  if not passages:
    raise records.RecordError(
      f"{found.names.docs} holds no passage; write it again."
    )
  return passages


def _is_own_passage(query: str, passage: records.Passage) -> bool:
  """Returns whether a passage, with or without its title, is the query."""

  def plain(text):
    return " ".join(text.split()).casefold()

  return plain(query) in (
    plain(passage.text),
    plain(f"{passage.title} {passage.text}"),
  )


def _count(number: int, what: str) -> list[str]:
  return [f"{what}: {number:,}"] if number else []


def _check_judged(
  names: Names,
  judged: Mapping[str, Mapping[str, int]],
  passage_ids: Collection[str],
) -> None:
  """Checks that a query has a relevant passage in the collection.

  Args:
    names: Where the parts are.
    judged: Query id to passage id to relevance, of the split's queries.
    passage_ids: The ids in the collection.

  Raises:
    RecordError: if not.
  """
  qrels = os.path.basename(names.qrels)
  if not judged:
    raise records.RecordError(
      f"{names.queries} holds no query that is judged in {qrels}; write them"
      " again."
    )
  relevant = [
    passage_id
    for relevances in judged.values()
    for passage_id, relevance in relevances.items()
    if relevance > 0
  ]
  if not relevant:
    raise records.RecordError(
      f"{names.qrels} judges no passage relevant; a relevance above 0 is."
    )
  if not any(passage_id in passage_ids for passage_id in relevant):
    raise records.RecordError(
      f"{names.docs} lacks all passages that {qrels} judges relevant; the ids"
      " in the two should be the same."
    )


class Judgements(NamedTuple):
  """The queries of a split and what is said of them.

  Attributes:
    queries: Query id to query.
    judged: Query id to passage id to relevance.
    without_query: The number of judgements of other queries.
    hidden: Whether the judgements are not public, so that there are none.
  """

  queries: Mapping[str, str]
  judged: Mapping[str, Mapping[str, int]]
  without_query: int
  hidden: bool = False


def read_judgements(
  found: Files, bad_records: records.BadRecords
) -> Judgements:
  """Reads the queries and judgements of a split; bad ones are reported."""
  queries = found.read_queries(found.queries, bad_records)
  if found.hidden:
    if os.path.getsize(found.qrels):
      raise records.RecordError(
        f"{os.fspath(found.qrels)} says that the judgements are hidden, so it"
        " must be empty; rename it if it holds judgements."
      )
    return Judgements(queries, {}, 0, hidden=True)
  judged, without_query = trec.read_qrels(found.qrels, queries, bad_records)
  if found.of_all_splits and judged:
    queries = {name: query for name, query in queries.items() if name in judged}
  return Judgements(queries, judged, without_query)


def make_test(
  names: Names,
  language: str,
  split: str,
  passages: tuple[records.Passage, ...],
  judgements: Judgements,
) -> records.RetrievalTest:
  """Makes the test of a split.

  Judgements of queries that are not there are not bad: they are left out, and
  counted in the test's notes. Judged passages that are not in the collection
  stay and count as not found, as in trec_eval. Queries without a judgement
  stay, too. `ranking.describe_unfindable` counts the last two.

  Args:
    names: What messages call the parts.
    language: Language code.
    split: "test" or "dev".
    passages: The collection.
    judgements: Those of the split.

  Raises:
    RecordError: if the split has no judged query or no relevant passage.
  """
  queries, judged, without_query, hidden = judgements
  by_id = {passage.passage_id: passage for passage in passages}
  if not hidden:
    _check_judged(names, judged, by_id)
  own_passages = tuple(
    query_id
    for query_id, query in queries.items()
    if query_id in by_id and _is_own_passage(query, by_id[query_id])
  )
  notes = [
    *_count(
      without_query,
      f"judgements of queries that {os.path.basename(names.queries)} lacks;"
      " left out",
    ),
    *_count(
      len(own_passages),
      f"queries that are a passage of {os.path.basename(names.docs)} with the"
      " same id; they do not find themselves, unless they are judged so",
    ),
  ]
  where = os.path.dirname(names.queries)
  return records.RetrievalTest(
    language=language,
    split=split,
    passages=passages,
    queries=queries,
    qrels=judged,
    own_passages=own_passages,
    notes=tuple(f"{where}, {split}: {note}" for note in notes),
  )


def read_tests(
  splits: Mapping[str, Files],
  language: str,
  bad_records: records.BadRecords,
) -> tuple[records.RetrievalTest, ...]:
  """Reads the tests of splits that share one collection of passages.

  Args:
    splits: "test" or "dev" to its files.
    language: Language code.
    bad_records: Receives passages, queries and judgements that cannot be used.

  Returns:
    A test for each split, in the order given.

  Raises:
    RecordError: for a bad record, if the policy is "error"; under any policy if
      no record of a file can be used, or as `make_test` does.
  """
  passages = read_passages(next(iter(splits.values())), bad_records)
  return tuple(
    make_test(
      found.names,
      language,
      split,
      passages,
      read_judgements(found, bad_records),
    )
    for split, found in splits.items()
  )


def read_pairs(
  found: Files, language: str, bad_records: records.BadRecords
) -> Iterator[records.RetrievalRecord]:
  """Reads the judged queries of a split as question-passage pairs.

  Passages of a relevance above 0 are the positives. Judged passages of a lower
  relevance are hard negatives. Memory holds the judged passages only.

  Args:
    found: The files of the split.
    language: The language of the texts.
    bad_records: Receives passages, queries and judgements that cannot be used;
      counts judgements of passages or queries that are not there, and queries
      without a relevant passage.

  Yields:
    A record for each query with a positive, in the order of the queries.

  Raises:
    RecordError: for a bad record, if the policy is "error"; under any policy if
      no record of a file can be used.
  """
  judgements = read_judgements(found, bad_records)
  wanted = {name for ids in judgements.judged.values() for name in ids}
  by_id = {
    passage.passage_id: passage
    for passage in iterate_passages(found, bad_records, wanted)
  }
  return make_pairs(found.names, language, by_id, judgements, bad_records)


def make_pairs(
  names: Names,
  language: str,
  by_id: Mapping[str, records.Passage],
  judgements: Judgements,
  bad_records: records.BadRecords,
) -> Iterator[records.RetrievalRecord]:
  """Makes question-passage pairs of judged queries; see `read_pairs`.

  Args:
    names: What messages call the parts.
    language: The language of the texts.
    by_id: The judged passages.
    judgements: Those of the split.
    bad_records: Counts judgements of passages or queries that are not there,
      and queries without a relevant passage.

  Raises:
    RecordError: if the split has no judged query or no relevant passage.
  """
  _check_judged(names, judgements.judged, by_id)
  for _ in range(judgements.without_query):
    bad_records.count_removed(
      names.qrels, "judgements of queries that are not there"
    )
  for number, (query_id, query) in enumerate(
    judgements.queries.items(), start=1
  ):
    relevances = judgements.judged.get(query_id, {})
    for _ in relevances.keys() - by_id.keys():
      bad_records.count_removed(
        names.qrels, "judgements of passages that are not there"
      )
    positives, negatives = (
      _select(relevances, by_id, relevant) for relevant in (True, False)
    )
    if not positives:
      bad_records.count_removed(
        names.queries, "queries without a relevant passage"
      )
      continue
    yield records.RetrievalRecord(
      query,
      positives,
      negatives,
      language,
      records.Place(names.queries, number, number),
    )


def _select(
  relevances: Mapping[str, int],
  by_id: Mapping[str, records.Passage],
  relevant: bool,
) -> tuple[records.Passage, ...]:
  """Returns the judged passages that are, or are not, relevant."""
  return tuple(
    by_id[passage_id]
    for passage_id, relevance in relevances.items()
    if (relevance > 0) == relevant and passage_id in by_id
  )
