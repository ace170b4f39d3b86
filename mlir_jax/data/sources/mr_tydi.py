"""Reads retrieval tests in the layout of Mr. TyDi (Zhang et al. 2021).

A language's folder holds, each plain or with ".gz" after its name:
  collection/docs.jsonl  {"id", "contents"}: title, blank line, text
  topic.SPLIT.tsv        query id, tab, query
  qrels.SPLIT.txt        TREC's query id, iteration, passage id, relevance
"""

import json
import os
import pathlib
from collections.abc import Sequence

from mlir_jax.data import records
from mlir_jax.data.sources import files


def locate(
  folder: str | os.PathLike, split: str
) -> tuple[pathlib.Path, pathlib.Path, pathlib.Path]:
  """The files of a split: passages, queries, qrels.

  Raises:
    FileNotFoundError: if one is missing.
    ValueError: if one is there both plain and gzipped.
  """
  folder = pathlib.Path(folder)
  return (
    files.find_file(folder / "collection", "docs.jsonl"),
    files.find_file(folder, f"topic.{split}.tsv"),
    files.find_file(folder, f"qrels.{split}.txt"),
  )


def _check_unused(identifier: str, lines: dict[str, int], field: str) -> None:
  """Refuses ids that are not one TREC column, or that stand before."""
  if len(identifier.split()) != 1:
    raise files.FieldError(
      field,
      f"{identifier!r} holds white space, which parts the columns of qrels"
      " and runs; rename it",
    )
  if identifier in lines:
    raise files.FieldError(
      field,
      f"{identifier!r} stands in line {lines[identifier]}, too; remove one",
    )


def _parse_passage(line: str) -> records.Passage:
  try:
    value = json.loads(line)
  except json.JSONDecodeError as error:
    raise files.FieldError(
      "record", f"is not JSON: {error.msg}; give one object a line"
    ) from None
  passage_id = files.check_id(files.get_field(value, "id"), "id")
  contents = files.get_field(value, "contents")
  files.check_text(contents, "contents")
  title, _, text = (part.strip() for part in contents.partition("\n\n"))
  if not text:  # No blank line, or nothing after it.
    title, text = "", title
  return records.Passage(text=text, title=title, passage_id=passage_id)


def _read_passages(
  path: pathlib.Path, bad: records.BadRecords
) -> tuple[records.Passage, ...]:
  passages = []
  lines: dict[str, int] = {}
  for number, line in files.read_lines(path, bad):
    if line is None:
      continue
    try:
      passage = _parse_passage(line)
      _check_unused(passage.passage_id, lines, "id")
    except files.FieldError as error:
      bad.report(str(path), number, error.field, error.problem)
      continue
    lines[passage.passage_id] = number
    passages.append(passage)
  return tuple(passages)


def _read_queries(
  path: pathlib.Path, bad: records.BadRecords
) -> tuple[dict[str, str], dict[str, int]]:
  """Query id to query, and query id to line."""
  queries = {}
  lines: dict[str, int] = {}
  for number, line in files.read_lines(path, bad):
    if line is None:
      continue
    query_id, _, query = (part.strip() for part in line.partition("\t"))
    try:
      if not query:
        raise files.FieldError(
          "query", "is missing; a line is the query id, a tab, the query"
        )
      _check_unused(query_id, lines, "query id")
    except files.FieldError as error:
      bad.report(str(path), number, error.field, error.problem)
      continue
    lines[query_id] = number
    queries[query_id] = query
  return queries, lines


def _check_judgement(line: str, judged: dict, queries: dict, ids: set):
  """The query id, passage id and relevance of a line of qrels."""
  columns = line.split()
  if len(columns) != 4:
    raise files.FieldError(
      "qrels",
      f"has {len(columns)} columns, not 4: query id, iteration, passage id,"
      " relevance",
    )
  query_id, _, passage_id, relevance = columns
  if query_id not in queries:
    raise files.FieldError(
      "query id", f"{query_id!r} is no query of this split; remove the line"
    )
  if passage_id not in ids:
    raise files.FieldError(
      "passage id",
      f"{passage_id!r} is not in the collection; add it or remove the line",
    )
  if passage_id in judged.get(query_id, ()):
    raise files.FieldError(
      "passage id",
      f"{passage_id!r} is judged twice for {query_id!r}; remove one",
    )
  try:
    return query_id, passage_id, int(relevance)
  except ValueError:
    raise files.FieldError(
      "relevance", f"{relevance!r} is no whole number; give 0, 1, …"
    ) from None


def _read_split(
  folder: pathlib.Path, split: str, ids: set, bad: records.BadRecords
) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
  """The queries and the qrels, both of the same query ids."""
  _, queries_path, qrels_path = locate(folder, split)
  queries, query_lines = _read_queries(queries_path, bad)
  qrels: dict[str, dict[str, int]] = {}
  for number, line in files.read_lines(qrels_path, bad):
    if line is None:
      continue
    try:
      query_id, passage_id, relevance = _check_judgement(
        line, qrels, queries, ids
      )
    except files.FieldError as error:
      bad.report(str(qrels_path), number, error.field, error.problem)
      continue
    qrels.setdefault(query_id, {})[passage_id] = relevance
  for query_id in [q for q in queries if q not in qrels]:
    bad.report(
      str(queries_path),
      query_lines[query_id],
      "query id",
      f"{query_id!r} has no line in {qrels_path.name}; judge or remove it",
    )
    del queries[query_id]
  return queries, qrels


def read_tests(
  folder: str | os.PathLike,
  language: str,
  splits: Sequence[str],
  bad: records.BadRecords,
) -> tuple[records.RetrievalTest, ...]:
  """Reads the tests of one language; its splits share one collection.

  Args:
    folder: The language's folder.
    language: Language code.
    splits: "test", "dev" or both.
    bad: Told of passages, queries and judgements that cannot be used. What
      depends on a skipped one is bad, too: a judgement of a passage that was
      skipped, a query that has no other.

  Returns:
    A test for each split, in the order given; their `passages` are the same
    tuple.

  Raises:
    FileNotFoundError: if a file is missing.
    RecordError: for a bad record, if the policy is "error"; in any case
      where a split is left without a query.
  """
  folder = pathlib.Path(folder)
  passages = _read_passages(locate(folder, splits[0])[0], bad)
  ids = {passage.passage_id for passage in passages}
  tests = []
  for split in splits:
    queries, qrels = _read_split(folder, split, ids, bad)
    if not queries:
      raise records.RecordError(
        f"{locate(folder, split)[1]} holds no judged query; write it again."
      )
    tests.append(
      records.RetrievalTest(
        language=language,
        split=split,
        passages=passages,
        queries=queries,
        qrels=qrels,
      )
    )
  return tuple(tests)
