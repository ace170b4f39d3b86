"""Reads TREC's files of a test collection: queries and judgements."""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mlir_jax.data import records
from mlir_jax.data.sources import record_fields, text_lines

_TREC_COLUMNS = ("query id", "iteration", "passage id", "relevance")
_BEIR_COLUMNS = ("query-id", "corpus-id", "score")
# ASCII digits; int() reads "1_000" and digits of any script, too.
_RELEVANCE = re.compile(r"-?[0-9]{1,9}")
# The first column of a header over a file of queries.
_QUERY_HEADERS = frozenset(("id", "qid", "queryid", "query", "topic"))


def check_unused(identifier: str, lines: Mapping[str, int], field: str) -> None:
  """Refuses ids that are not one TREC column, or that stand before."""
  if len(identifier.split()) != 1:
    raise record_fields.FieldError(
      field,
      f"{record_fields.show(identifier)} holds white space, which parts"
      " the columns of qrels and runs; rename it",
    )
  if identifier in lines:
    raise record_fields.FieldError(
      field,
      f"{record_fields.show(identifier)} is in line {lines[identifier]}, too;"
      " remove one",
    )


def _parse_query(line: str, lines: Mapping[str, int]) -> tuple[str, str]:
  """The id and the text of a query."""
  query_id, *columns = line.split("\t")
  query_id = record_fields.check_text(query_id, "query id")
  columns = [record_fields.strip(column) for column in columns]
  if len(columns) > 1:
    raise record_fields.FieldError(
      "query",
      f"has {len(columns) + 1} columns, not 2: the query id, a tab, the query;"
      " remove the other columns, or the tabs within the query",
    )
  if not any(columns):
    raise record_fields.FieldError(
      "query", "is missing; a line is the query id, a tab, the query"
    )
  if not lines and re.sub("[-_ ]", "", query_id.lower()) in _QUERY_HEADERS:
    raise record_fields.FieldError(
      "query id", f"{query_id!r} heads a column; remove the header"
    )
  check_unused(query_id, lines, "query id")
  return query_id, columns[0]


def read_queries(path: pathlib.Path, bad: records.BadRecords) -> dict[str, str]:
  """Query id to query."""
  bad = records.BadRecordsOfFile(bad)
  queries = {}
  lines: dict[str, int] = {}
  for number, line in text_lines.read_lines(path, bad):
    if not line:
      continue
    try:
      query_id, query = _parse_query(line, lines)
    except record_fields.FieldError as error:
      bad.report(str(path), number, error.field, error.problem)
      continue
    lines[query_id] = number
    queries[query_id] = query
  bad.check_some(path, len(queries))
  return queries


class Qrels(NamedTuple):
  """What a file of judgements says.

  Attributes:
    judged: Query id to passage id to relevance, of the queries that are there.
    without_query: How many judgements are of other queries.
  """

  judged: dict[str, dict[str, int]]
  without_query: int


def _parse_judgement(line: str, columns: Sequence[str]) -> tuple[str, str, int]:
  """The query id, passage id and relevance of a line of qrels."""
  values = line.split()
  if len(values) != len(columns):
    raise record_fields.FieldError(
      "qrels",
      f"has {len(values)} columns, not {len(columns)}: {', '.join(columns)}",
    )
  query_id, *_, passage_id, relevance = values
  if not _RELEVANCE.fullmatch(relevance):
    raise record_fields.FieldError(
      "relevance",
      f"{record_fields.show(relevance)} is not a whole number; give 0, 1, …",
    )
  return query_id, passage_id, int(relevance)


def read_qrels(
  path: pathlib.Path, queries: Mapping[str, str], bad: records.BadRecords
) -> Qrels:
  """Reads a file of judgements, in TREC's columns or BEIR's."""
  bad = records.BadRecordsOfFile(bad)
  columns = _TREC_COLUMNS
  judged: dict[str, dict[str, int]] = {}
  without_query = good = 0
  for number, line in text_lines.read_lines(path, bad):
    if not line:
      continue
    if not good and tuple(line.split()) == _BEIR_COLUMNS:
      columns = _BEIR_COLUMNS
      continue
    try:
      query_id, passage_id, relevance = _parse_judgement(line, columns)
      if passage_id in judged.get(query_id, ()):
        raise record_fields.FieldError(
          "passage id",
          f"{record_fields.show(passage_id)} is judged twice for"
          f" {record_fields.show(query_id)}; remove one",
        )
    except record_fields.FieldError as error:
      bad.report(str(path), number, error.field, error.problem)
      continue
    good += 1
    if query_id in queries:
      judged.setdefault(query_id, {})[passage_id] = relevance
    else:
      without_query += 1
  bad.check_some(path, good)
  return Qrels(judged, without_query)
