"""Reads the files of a retrieval test in TREC's style: queries, judgements."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mlir_jax.data import records
from mlir_jax.data.sources import record_fields, text_lines

_TREC_COLUMNS = ("query id", "iteration", "passage id", "relevance")
BEIR_COLUMNS = ("query-id", "corpus-id", "score")
# ASCII digits. int() would also read "1_000" and digits of any script.
_RELEVANCE = re.compile(r"-?[0-9]{1,9}")
# The first column of a header over a file of queries.
_QUERY_HEADERS = frozenset(("id", "qid", "queryid", "query", "topic"))


def check_new_id(
  identifier: str, lines: Mapping[str, int | str], field: str
) -> None:
  """Checks that an id fits in a column of TREC's files and is not used yet.

  Args:
    identifier: The id.
    lines: Each id that is there before this one, to its line: a number, or
      the number and the file, as words.
    field: The id's field, for the message.

  Raises:
    FieldError: if the id holds white space or is used.
  """
  if len(identifier.split()) != 1:
    raise record_fields.FieldError(
      field,
      f"{record_fields.show(identifier)} holds white space, which separates"
      " the columns of qrels and runs; rename it",
    )
  if identifier in lines:
    raise record_fields.FieldError(
      field,
      f"{record_fields.show(identifier)} is in line {lines[identifier]}, too;"
      " remove one",
    )


def check_new_judgement(
  query_id: str, passage_id: str, judged: Mapping[str, Mapping[str, int]]
) -> None:
  """Checks that a passage is not judged yet.

  Args:
    query_id: The id of the query.
    passage_id: The id of the passage.
    judged: Query id to passage id to relevance, of the judgements before.

  Raises:
    FieldError: if it is judged.
  """
  if passage_id in judged.get(query_id, ()):
    raise record_fields.FieldError(
      "passage id",
      f"{record_fields.show(passage_id)} is judged twice for"
      f" {record_fields.show(query_id)}; remove one",
    )


def parse_query(line: str, lines: Mapping[str, int]) -> tuple[str, str]:
  """Returns the id and the text of a query.

  Args:
    line: A line of a file of queries.
    lines: As in `check_new_id`; a header is looked for while it is empty.

  Raises:
    FieldError: if the line is not an id and a query, or the id is used.
  """
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
      "query id", f"{query_id!r} is the name of a column; remove the header"
    )
  check_new_id(query_id, lines, "query id")
  return query_id, columns[0]


def read_queries(
  path: str | os.PathLike, bad_records: records.BadRecords
) -> dict[str, str]:
  """Reads a file of queries. A line is the query id, a tab, the query.

  Returns:
    Query id to query.
  """
  lines: dict[str, int] = {}

  def parse(line: str, number: int) -> tuple[str, str]:
    query_id, query = parse_query(line, lines)
    lines[query_id] = number
    return query_id, query

  return dict(text_lines.read_records(path, bad_records, parse))


class Qrels(NamedTuple):
  """The judgements of a file.

  Attributes:
    judged: Query id to passage id to relevance, of the given queries.
    without_query: The number of judgements of other queries.
  """

  judged: dict[str, dict[str, int]]
  without_query: int


def _parse_judgement(line: str, columns: Sequence[str]) -> tuple[str, str, int]:
  """Returns the query id, the passage id and the relevance of a line."""
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
  path: str | os.PathLike,
  queries: Mapping[str, str] | None,
  bad_records: records.BadRecords,
) -> Qrels:
  """Reads a file of judgements, in TREC's four columns or BEIR's three.

  Args:
    path: The file.
    queries: Query id to query; None for the judgements of all queries.
    bad_records: Receives bad judgements.
  """
  bad_records = records.BadRecordsOfFile(bad_records)
  columns = _TREC_COLUMNS
  judged: dict[str, dict[str, int]] = {}
  without_query = good = 0
  for number, line in text_lines.read_lines(path, bad_records):
    if not line:
      continue
    if not good and tuple(line.split()) == BEIR_COLUMNS:
      columns = BEIR_COLUMNS
      continue
    try:
      query_id, passage_id, relevance = _parse_judgement(line, columns)
      check_new_judgement(query_id, passage_id, judged)
    except record_fields.FieldError as error:
      bad_records.report(str(path), number, error.field, error.problem)
      continue
    good += 1
    if queries is None or query_id in queries:
      judged.setdefault(query_id, {})[passage_id] = relevance
    else:
      without_query += 1
  bad_records.check_some(path, good)
  return Qrels(judged, without_query)
