"""The files of a column of the table: what a system has found, query by query.

FOLDER/NAME.json            result to mean: {"test/de/mrr@100": 0.4, ...}
FOLDER/NAME.intervals.json  result to its 95 % interval, [low, high]
FOLDER/NAME/                a TREC run SPLIT.LANGUAGE.trec for each test
FOLDER/NAME/queries.jsonl   the measures of each judged query of each test
FOLDER/NAME/examples.jsonl  some queries of each test with their best passages
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from mlir_jax.data import records
from mlir_jax.evals import measures, report, significance
from mlir_jax.retrieval import runs
from mlir_jax.storage import reading, writing

QUERIES = "queries.jsonl"
EXAMPLES = "examples.jsonl"
# Of each test.
_EXAMPLES = 5
_PASSAGES = 5
_CHARACTERS = 1_000

Tests = Mapping[str, measures.Values]  # "test/de", query id, measure to value.


class Column:
  """Collects what a column holds, and writes it."""

  def __init__(self, folder: str | os.PathLike, name: str):
    """Names the column.

    Args:
      folder: The folder of all columns.
      name: The name of the column.
    """
    self._folder = epath.Path(folder)
    self._name = name
    self._examples: list[dict[str, Any]] = []

  @property
  def trec_folder(self) -> str:
    """The folder of the TREC runs."""
    return str(self._folder / self._name)

  def look(self, test: records.RetrievalTest, run: runs.Run) -> None:
    """Keeps some queries of a test with the passages that were found.

    The queries have the lowest hashes of their ids, so they are the same for
    each system. Queries with a judgement come first.

    Args:
      test: The test.
      run: Its run.
    """

    def place(query_id):
      digest = hashlib.sha256(query_id.encode()).digest()
      return not test.qrels.get(query_id), digest

    chosen = sorted(test.queries, key=place)[:_EXAMPLES]
    shown = {
      query_id: _shown(test.qrels.get(query_id, {}), run.get(query_id, {}))
      for query_id in chosen
    }
    wanted = {passage_id for ids in shown.values() for passage_id in ids}
    texts = {
      passage.passage_id: passage
      for passage in test.passages
      if passage.passage_id in wanted
    }
    for query_id, ids in shown.items():
      scores, judged = run.get(query_id, {}), test.qrels.get(query_id, {})
      places = enumerate(runs.ranked(scores), start=1)
      ranks = {passage_id: rank for rank, (passage_id, _) in places}
      self._examples.append(
        {
          "test": f"{test.split}/{test.language}",
          "query_id": query_id,
          "query": test.queries[query_id],
          "passages": [
            {
              "passage_id": passage_id,
              "title": texts[passage_id].title,
              "text": _cut(texts[passage_id].text),
              "rank": ranks.get(passage_id),
              "score": scores.get(passage_id),
              "relevance": judged.get(passage_id),
            }
            for passage_id in ids
            if passage_id in texts
          ],
        }
      )

  def write(self, results: Mapping[str, float], tests: Tests) -> None:
    """Writes all files but the TREC runs; the file of the results comes last.

    Args:
      results: The results.
      tests: The values of each judged query.
    """
    folder = self._folder / self._name
    lines = [
      {"test": test, "query_id": query_id, "measures": of_query}
      for test, values in tests.items()
      for query_id, of_query in values.items()
    ]
    writing.write_aside(str(folder / QUERIES), _jsonl(lines))
    writing.write_aside(str(folder / EXAMPLES), _jsonl(self._examples))
    for suffix, content in (
      (".intervals.json", significance.intervals(tests)),
      (".json", results),
    ):
      writing.write_aside(
        str(self._folder / f"{self._name}{suffix}"),
        json.dumps(content, indent=2) + "\n",
      )


def _shown(judged: Mapping[str, int], scores: Mapping[str, float]) -> list[str]:
  """Returns the best passages, and a relevant one if none is among them.

  It is the relevant passage with the best rank. If none was found, it is the
  first one of the judgements.
  """
  ranked = [passage_id for passage_id, _ in runs.ranked(scores)]
  best = ranked[:_PASSAGES]
  relevant = [name for name, relevance in judged.items() if relevance > 0]
  if relevant and not set(relevant) & set(best):
    found = [name for name in ranked if name in set(relevant)]
    best.append((found or relevant)[0])
  return best


def _cut(text: str) -> str:
  return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}…"


def _jsonl(lines: list[dict[str, Any]]) -> str:
  return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def read_queries(folder: str | os.PathLike) -> dict[str, dict[str, Any]]:
  """Reads the measures of each judged query of a column.

  Args:
    folder: The folder of the column's TREC runs.

  Returns:
    Test, query id and measure to value; {} if there is no such file, as in
    results of an earlier version.

  Raises:
    UnreadableError: if a line is damaged; it names the file and the line.
  """
  path = epath.Path(folder) / QUERIES
  tests: dict[str, dict[str, Any]] = {}
  if not path.exists():
    return tests
  mend = report.MAKE_AGAIN
  names: dict[str, set[str]] = {}
  for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
    if not line:
      continue
    where = f"{path}:{number}"
    record = reading.parse_json(line, where, mend=mend)
    test, query_id, values = (
      record.get(key) for key in ("test", "query_id", "measures")
    )
    problem = ""
    if not isinstance(test, str) or test.count("/") < 1:
      problem = f"test is {test!r}"
    elif not isinstance(query_id, str) or query_id in tests.get(test, ()):
      problem = f"query_id is {query_id!r}"
    elif not (
      isinstance(values, dict)
      and values
      and all(_is_number(value) for value in values.values())
      and values.keys() == names.setdefault(test, set(values))
    ):
      problem = f"measures is {values!r:.200}"
    if problem:
      raise reading.UnreadableError(f"{where}: {problem}. {mend}")
    tests.setdefault(str(test), {})[str(query_id)] = values
  return tests


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and math.isfinite(value)
