"""Reads retrieval tests in the layout of Mr. TyDi (Zhang et al. 2021).

A language's folder holds, each plain or with ".gz" after its name:
  collection/docs.jsonl  {"id", "contents"}: title, blank line, text
  topic.SPLIT.tsv        query id, tab, query
  qrels.SPLIT.txt        TREC's query id, iteration, passage id, relevance; or
                         BEIR's three columns below its header
"""

import os
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence

from mlir_jax.data import records
from mlir_jax.data.sources import files, record_fields, text_lines, trec

_COLLECTION = "collection"
# It separates a title from its text. A line of white space is blank, too.
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")


def list_files(
  folder: pathlib.Path, not_read: list[pathlib.Path] | None = None
) -> dict[str, pathlib.Path]:
  """Lists the files of a language's folder, without those of its collection.

  Args:
    folder: The language's folder.
    not_read: Receives the hidden files.

  Returns:
    Name without ".gz" to path.

  Raises:
    ValueError: as `files.list_files` does.
  """
  return files.list_files(folder, not_read, folders=(_COLLECTION,))


def locate(
  folder: str | os.PathLike, split: str
) -> tuple[pathlib.Path, pathlib.Path, pathlib.Path]:
  """Finds the files of a split: passages, queries, qrels.

  Raises:
    FileNotFoundError: if one of the files is missing.
    ValueError: as `files.list_files` does.
  """
  folder = pathlib.Path(folder)
  found = list_files(folder) if folder.is_dir() else {}
  corpus = folder / _COLLECTION
  in_corpus = files.list_files(corpus) if corpus.is_dir() else {}
  paths = []
  for where, there, name in (
    (corpus, in_corpus, "docs.jsonl"),
    (folder, found, f"topic.{split}.tsv"),
    (folder, found, f"qrels.{split}.txt"),
  ):
    if name not in there:
      raise FileNotFoundError(f"{where} holds neither {name} nor {name}.gz.")
    paths.append(there[name])
  return tuple(paths)


def _parse_passage(line: str) -> records.Passage:
  value = record_fields.parse_json(line)
  passage_id = record_fields.check_id(
    record_fields.get_field(value, "id"), "id"
  )
  contents = record_fields.get_text(value, "contents")
  if value.get("title"):
    raise record_fields.FieldError(
      "title",
      'is next to "contents"; begin the contents with the title and a blank'
      " line, and remove the field",
    )
  contents = contents.replace("\r\n", "\n").replace("\r", "\n")
  title, *rest = _BLANK_LINE.split(contents, maxsplit=1)
  title, text = record_fields.strip(title), record_fields.strip("".join(rest))
  if not text:  # No blank line, or nothing after it.
    title, text = "", title
  return records.Passage(text=text, title=title, passage_id=passage_id)


def read_passages(
  path: str | os.PathLike, bad_records: records.BadRecords
) -> tuple[records.Passage, ...]:
  """Reads the passages of a docs.jsonl; their ids are unique."""
  lines: dict[str, int] = {}

  def parse(line: str, number: int) -> records.Passage:
    passage = _parse_passage(line)
    trec.check_new_id(passage.passage_id, lines, "id")
    lines[passage.passage_id] = number
    return passage

  passages = tuple(text_lines.read_records(path, bad_records, parse))
  if not passages:
    raise records.RecordError(f"{path} holds no passage; write it again.")
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
  paths: tuple[pathlib.Path, pathlib.Path, pathlib.Path],
  judged: Mapping[str, Mapping[str, int]],
  passage_ids: Collection[str],
) -> None:
  """Checks that a query has a relevant passage in the collection.

  Args:
    paths: The files of the split: passages, queries, qrels.
    judged: Query id to passage id to relevance, of the split's queries.
    passage_ids: The ids in the collection.

  Raises:
    RecordError: if not.
  """
  docs_path, queries_path, qrels_path = paths
  if not judged:
    raise records.RecordError(
      f"{queries_path} holds no query that is judged in {qrels_path.name};"
      " write them again."
    )
  relevant = [
    passage_id
    for relevances in judged.values()
    for passage_id, relevance in relevances.items()
    if relevance > 0
  ]
  if not relevant:
    raise records.RecordError(
      f"{qrels_path} judges no passage relevant; a relevance above 0 is."
    )
  if not any(passage_id in passage_ids for passage_id in relevant):
    raise records.RecordError(
      f"{docs_path} lacks all passages that {qrels_path.name} judges"
      " relevant; the ids in the two files should be the same."
    )


def _read_split(
  folder: pathlib.Path,
  language: str,
  split: str,
  passages: tuple[records.Passage, ...],
  bad_records: records.BadRecords,
) -> records.RetrievalTest:
  """Reads the test of a split; `passages` is the collection."""
  by_id = {passage.passage_id: passage for passage in passages}
  paths = locate(folder, split)
  docs_path, queries_path, qrels_path = paths
  queries = trec.read_queries(queries_path, bad_records)
  judged, without_query = trec.read_qrels(qrels_path, queries, bad_records)
  _check_judged(paths, judged, by_id)
  own_passages = tuple(
    query_id
    for query_id, query in queries.items()
    if query_id in by_id and _is_own_passage(query, by_id[query_id])
  )
  notes = [
    *_count(
      without_query,
      f"judgements of queries that {queries_path.name} lacks; left out",
    ),
    *_count(
      len(own_passages),
      f"queries that are a passage of {docs_path.name} with the same id; they"
      " do not find themselves, unless they are judged so",
    ),
  ]
  return records.RetrievalTest(
    language=language,
    split=split,
    passages=passages,
    queries=queries,
    qrels=judged,
    own_passages=own_passages,
    notes=tuple(f"{folder}, {split}: {note}" for note in notes),
  )


def read_tests(
  folder: str | os.PathLike,
  language: str,
  splits: Sequence[str],
  bad_records: records.BadRecords,
) -> tuple[records.RetrievalTest, ...]:
  """Reads the tests of one language; its splits share one collection.

  Judgements of queries that are not in the topic file are not bad: they are
  left out, and counted in the test's notes. Judged passages that are not in the
  collection stay and count as not found, as in trec_eval. Queries without a
  judgement stay, too. `ranking.describe_unfindable` counts the last two.

  Args:
    folder: The language's folder.
    language: Language code.
    splits: "test", "dev" or both.
    bad_records: Receives passages, queries and judgements that cannot be used.

  Returns:
    A test for each split, in the order given. All have the same tuple of
    passages.

  Raises:
    FileNotFoundError: if a file is missing.
    RecordError: for a bad record, if the policy is "error"; under any policy if
      no record of a file can be used, or a split has no judged query or no
      relevant passage.
  """
  folder = pathlib.Path(folder)
  passages = read_passages(locate(folder, splits[0])[0], bad_records)
  return tuple(
    _read_split(folder, language, split, passages, bad_records)
    for split in splits
  )
