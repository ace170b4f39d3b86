"""What explains the results of runs: maps, diagnostics and queries.

They cannot be averaged over seeds, so they are of a variant's first run.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mlir_jax.evals import report
from mlir_jax.reporting import (
  column_files,
  diagnostics,
  scores,
  variants,
)

# Of a query, the first passages are shown, and each judged one.
PASSAGES = 5


class NamedMap(NamedTuple):
  """A map with the name of the run and the step."""

  model: str
  map: column_files.Map


class Result(NamedTuple):
  """A passage with its rank, from 1, and its language, or "".

  The rank is None if it is not known: the passage is after the first ones.
  """

  rank: int | None
  passage: column_files.Passage
  language: str

  @property
  def is_relevant(self) -> bool:
    """Whether the passage is judged relevant."""
    return (self.passage.relevance or 0) > 0


class Found(NamedTuple):
  """What a model has found for a query.

  Attributes:
    model: The name of the run and the step.
    measures: The measures of the query as a text.
    results: The passages.
  """

  model: str
  measures: str
  results: Sequence[Result]

  @property
  def has_relevant(self) -> bool:
    """Whether a passage is judged relevant."""
    return any(result.is_relevant for result in self.results)


class Query(NamedTuple):
  """A query with what each model has found."""

  query_id: str
  text: str
  found: list[Found]


class Test(NamedTuple):
  """Queries of a test, and their language, or ""."""

  language: str
  queries: Sequence[Query]


def models(found: Sequence[variants.Variant]) -> list[diagnostics.Model]:
  """Returns the models that have diagnostics, before and after training."""
  return [
    diagnostics.Model(
      number,
      name,
      column is not found[number].first.columns[-1],
      column.diagnostics,
    )
    for number, name, column in _columns(found)
    if column.diagnostics
  ]


def maps(found: Sequence[variants.Variant]) -> list[NamedMap]:
  """Returns the maps, before and after training."""
  return [
    NamedMap(model, column.map)
    for _, model, column in _columns(found)
    if column.map and column.map.points
  ]


def tests(found: Sequence[variants.Variant]) -> dict[str, Test]:
  """Returns each test to its queries."""
  by_test: dict[str, dict[str, Query]] = {}
  for _, model, column in _columns(found):
    for example in column.examples:
      queries = by_test.setdefault(example.test, {})
      query = queries.setdefault(
        example.query_id, Query(example.query_id, example.query, [])
      )
      query.found.append(_choose(model, example))
  return {
    test: Test(language_of(test), list(queries.values()))
    for test, queries in by_test.items()
  }


def language_of(test: str) -> str:
  """Returns the language of a test's queries, "de" of "test/de"; or ""."""
  last = test.rpartition("/")[2]
  return last if re.fullmatch("[a-z]{2,3}(-[A-Za-z0-9]+)*", last) else ""


def _columns(
  found: Sequence[variants.Variant],
) -> Iterator[tuple[int, str, column_files.Column]]:
  """Yields variant, name and column, before and after training."""
  for number, variant in enumerate(found):
    name = variant.first.name if len(variant.runs) > 1 else variant.name
    for when in (scores.BEFORE, scores.AFTER):
      if column := scores.column(variant.first, when):
        is_system = column.name == variant.first.system
        yield number, name if is_system else f"{name}, {column.name}", column


def _choose(model: str, example: column_files.Example) -> Found:
  """Chooses the passages that are shown."""
  # In other tests, passages have other languages than queries.
  is_monolingual = example.test.startswith(("test/", "dev/"))
  language = language_of(example.test) if is_monolingual else ""
  results = []
  for place, passage in enumerate(example.passages, start=1):
    rank = passage.rank or (place if place <= PASSAGES else None)
    if passage.score is None:
      rank = None
    results.append(
      Result(int(rank) if rank else None, passage, passage.language or language)
    )
  return Found(
    model,
    ", ".join(
      f"{report.title(measure)} {value:.3g}"
      for measure, value in example.measures.items()
    ),
    [
      result
      for place, result in enumerate(results, start=1)
      if place <= PASSAGES or result.is_relevant
    ],
  )
