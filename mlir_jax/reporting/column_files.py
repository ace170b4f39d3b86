"""Reads the files that explain the results of a column, each if it is there.

A column is a model after a step. Its results are in NAME.json. What explains
them is in NAME.intervals.json, and in the folder NAME: queries.jsonl,
examples.jsonl, diagnostics.json and map.json.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

from etils import epath

from mlir_jax.evals import columns, report
from mlir_jax.reporting import diagnostics
from mlir_jax.storage import reading

# Of the intervals in NAME.intervals.json.
CONFIDENCE = 0.95


class Interval(NamedTuple):
  """An interval that holds the value with a probability of `CONFIDENCE`."""

  low: float
  high: float


class Point(NamedTuple):
  """A text on a map of vectors."""

  language: str
  x: float
  y: float
  text: str


class Map(NamedTuple):
  """Vectors of texts in two dimensions.

  Attributes:
    points: A point for each text.
    method: How the dimensions were found, for the reader.
  """

  points: tuple[Point, ...]
  method: str


class Passage(NamedTuple):
  """A passage that a query has found.

  Attributes:
    passage_id: Its id.
    title: Its title, or "".
    text: Its text.
    score: Its score for the query; None if it was not found.
    rank: Its rank, from 1; None if the file does not say it.
    relevance: Its judgement; above 0 is relevant. None if it is not judged.
    language: Its language; "" if the file does not say it.
  """

  passage_id: str
  title: str
  text: str
  score: float | None
  rank: float | None
  relevance: float | None
  language: str


class Example(NamedTuple):
  """A query with the passages that it has found, the best first.

  Attributes:
    test: The test, such as "test/de".
    query_id: Its id.
    query: Its text.
    passages: The passages.
    measures: Measure to its value for this query; empty without queries.jsonl.
  """

  test: str
  query_id: str
  query: str
  passages: tuple[Passage, ...]
  measures: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Column:
  """The results of a model, and what explains them.

  Attributes:
    name: What the reader sees: "step 3,000".
    results: Name of a result to its value.
    intervals: Name of a result to its interval.
    diagnostics: Name to any value that JSON has; see `diagnostics`.
    map: The map of vectors, if there is one.
    examples: Some queries.
    queries: Test, query id and measure to value, of each judged query.
  """

  name: str
  results: Mapping[str, float]
  intervals: Mapping[str, Interval]
  diagnostics: Mapping[str, Any]
  map: Map | None
  examples: tuple[Example, ...]
  queries: columns.Tests


def read(path: epath.Path, name: str) -> Column:
  """Reads a column.

  Args:
    path: The file of the results, NAME.json.
    name: The name that the reader sees.

  Raises:
    UnreadableError: if a file is damaged; it names the file, and the line or
      the field.
  """
  folder = path.parent / path.stem
  examples = _read_examples(folder / columns.EXAMPLES)
  queries = columns.read_queries(folder)
  return Column(
    name,
    report.read_results(path),
    _read_intervals(path.parent / f"{path.stem}.intervals.json"),
    _read_object(folder / "diagnostics.json"),
    _read_map(folder / "map.json"),
    tuple(
      each._replace(measures=queries.get(each.test, {}).get(each.query_id, {}))
      for each in examples
    ),
    queries,
  )


def _read_intervals(path: epath.Path) -> dict[str, Interval]:
  intervals = {}
  for name, value in _read_object(path).items():
    if not diagnostics.are_numbers(value) or len(value) != 2:
      _refuse(str(path), name, value, "two numbers")
    intervals[name] = Interval(*map(float, value))
  return intervals


def _read_map(path: epath.Path) -> Map | None:
  content = _read_object(path)
  if not content:
    return None
  points = content.get("points")
  if not isinstance(points, list):
    _refuse(str(path), "points", points, "a list")
  found = []
  for number, point in enumerate(points):
    where = f"{path}: points[{number}]"
    if not isinstance(point, Mapping):
      raise _unreadable(f"{where} is {point!r:.60}, not an object.")
    found.append(
      Point(
        _text(point, "language", where),
        _finite(point, "x", where),
        _finite(point, "y", where),
        _text(point, "text", where),
      )
    )
  return Map(tuple(found), _text(content, "method", str(path)))


def _read_examples(path: epath.Path) -> list[Example]:
  examples = []
  for where, record in _read_lines(path):
    passages = record.get("passages")
    if not isinstance(passages, list):
      _refuse(where, "passages", passages, "a list")
    examples.append(
      Example(
        _text(record, "test", where),
        _text(record, "query_id", where),
        _text(record, "query", where),
        tuple(
          _parse_passage(passage, f"{where}: passages[{number}]")
          for number, passage in enumerate(passages)
        ),
        {},
      )
    )
  return examples


def _parse_passage(passage: Any, where: str) -> Passage:
  if not isinstance(passage, Mapping):
    raise _unreadable(f"{where} is {passage!r:.60}, not an object.")
  return Passage(
    _text(passage, "passage_id", where),
    _text(passage, "title", where),
    _text(passage, "text", where),
    _finite_or_none(passage, "score", where),
    _finite_or_none(passage, "rank", where),
    _finite_or_none(passage, "relevance", where),
    _text(passage, "language", where) if "language" in passage else "",
  )


def _read_object(path: epath.Path) -> dict[str, Any]:
  """Reads a JSON object; a missing file gives an empty one."""
  if not path.exists():
    return {}
  return reading.read_json(path, mend=report.MAKE_AGAIN)


def _read_lines(path: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields the place and the object of each line; none of a missing file."""
  if not path.exists():
    return
  with path.open("rb") as file:
    for number, line in enumerate(file, start=1):
      where = f"{path}:{number}"
      yield where, reading.parse_json(line, where, mend=report.MAKE_AGAIN)


def _text(record: Mapping[str, Any], name: str, where: str) -> str:
  if not isinstance(value := record.get(name), str):
    _refuse(where, name, value, "a text")
  return value


def _finite(record: Mapping[str, Any], name: str, where: str) -> float:
  value = record.get(name)
  if not diagnostics.is_number(value) or not math.isfinite(value):
    _refuse(where, name, value, "a number")
  return float(value)


def _finite_or_none(
  record: Mapping[str, Any], name: str, where: str
) -> float | None:
  return None if record.get(name) is None else _finite(record, name, where)


def _refuse(where: str, name: str, value: Any, needed: str) -> NoReturn:
  raise _unreadable(f"{where}: {name} is {value!r:.60}, not {needed}.")


def _unreadable(problem: str) -> reading.UnreadableError:
  return reading.UnreadableError(f"{problem} {report.MAKE_AGAIN}")
