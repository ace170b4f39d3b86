"""The table of results: a row per language, with means per group.

Results are {name: value}, such as {"test/de/mrr@100": 0.4}. A column holds the
results of one model, such as "step 0". A language's group says what training
had of the language. The groups without retrieval or parallel text show
zero-shot transfer, so means are taken over groups.
"""

import dataclasses
import os
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mlir_jax.evals import measures as measures_lib
from mlir_jax.evals import significance
from mlir_jax.storage import reading

Columns = Mapping[str, Mapping[str, float]]  # Name of a column to results.
# Name of a column to test, query id and measure to value.
Queries = Mapping[str, Mapping[str, measures_lib.Values]]
Interval = tuple[float, float]  # Low and high.
Shared = Mapping[str, Mapping[str, int]]  # From `overlap.count_shared_texts`.

# The first measures of the table, in its order; other measures follow.
TITLES = {
  **{measure.name: measure.title for measure in measures_lib.DEFAULT},
  "tatoeba to en": "Tatoeba → en",
  "tatoeba from en": "Tatoeba en →",
  "tatoeba to en strict": "Tatoeba → en, strict",
  "tatoeba from en strict": "Tatoeba en →, strict",
}
MAIN = "mrr@100"
ENGLISH = "en"
OTHER = "other languages"
WITH_PAIRS = "with question-passage pairs"
ALL = "all languages"  # The only group where training's languages are unknown.
ZERO_SHOT = "all but English"
MAKE_AGAIN = "Delete it, or make it again with mlir_jax.evaluate."
# The first part of a protocol's results: its name, a hyphen and a pool.
PROTOCOL = "[a-z][a-z0-9_]*-[a-z0-9_]+"
# The names of this package's results begin with these.
TAKEN = ("test", "dev", "tatoeba")


@dataclasses.dataclass(frozen=True)
class Row:
  """The values of a language, or the means of several languages.

  Attributes:
    label: The language, followed by its split unless that is "test"; or "mean".
    group: Name of the group.
    languages: The language; in a row of means, all languages of the group. The
      mean of a measure is over those that have a value in every column.
    split: "test" or "dev".
    values: Measure to one value per column; None where there is no value.
    intervals: Measure to one 95 % interval per column, of bootstraps over
      queries; None where values of queries are not known. The interval of a
      mean over languages draws the queries of each language anew.
  """

  label: str
  group: str
  languages: tuple[str, ...]
  split: str
  values: Mapping[str, tuple[float | None, ...]]
  intervals: Mapping[str, tuple[Interval | None, ...]] = dataclasses.field(
    default_factory=dict
  )


@dataclasses.dataclass(frozen=True)
class ExtraRow:
  """A metric of an evaluator of the user, or of a protocol over all queries.

  Attributes:
    evaluator: The name in `eval.extra` or `eval.protocols`.
    metric: The metric's name.
    values: One value per column; None where there is no value.
  """

  evaluator: str
  metric: str
  values: tuple[float | None, ...]


@dataclasses.dataclass(frozen=True)
class Table:
  """Results by language, group, measure and column.

  Attributes:
    columns: Names of the columns.
    measures: Names of the measures; each has a value per column.
    rows: The rows by group. A group of several languages ends with its mean.
      The last row is the mean over all languages but English.
    extra: The metrics of evaluators and protocols. They are in no mean.
  """

  columns: tuple[str, ...]
  measures: tuple[str, ...]
  rows: tuple[Row, ...]
  extra: tuple[ExtraRow, ...] = ()


def with_pairs(
  groups: Mapping[str, str], languages: Iterable[str]
) -> dict[str, str]:
  """Gives the languages of training's question-passage pairs their own group.

  Args:
    groups: Language to its group.
    languages: The languages of the pairs; English stays where it is.

  Returns:
    The groups; the new one follows English.
  """
  trained = dict.fromkeys(sorted(set(languages) - {ENGLISH}), WITH_PAIRS)
  english = {name: groups[name] for name in groups if name == ENGLISH}
  others = {name: groups[name] for name in groups if name not in trained}
  return english | trained | others


def title(measure: str) -> str:
  """Returns the title of a measure: "nDCG@20" for "ndcg@20"."""
  if measure in TITLES:
    return TITLES[measure]
  try:
    return measures_lib.parse(measure).title
  except ValueError:  # It is not one of ir-measures.
    return measure


def read_results(path: str | os.PathLike) -> dict[str, float]:
  """Reads results that `suite.Suite.table` wrote: name to value.

  Raises:
    UnreadableError: if the file is damaged; it names the file and the result.
  """
  results = reading.read_json(path, mend=MAKE_AGAIN)
  for name, value in results.items():
    problem = ""
    if not split_extra(name):
      try:
        parse(name)
      except ValueError as error:
        problem = str(error)
    if type(value) not in (int, float):
      problem = f"{name} is {value!r}, not a number."
    if problem:
      raise reading.UnreadableError(f"{path}: {problem} {MAKE_AGAIN}")
  return results


def may_name(evaluator: str) -> bool:
  """Whether this can be the name of a user's evaluator."""
  return evaluator not in TAKEN and bool(
    re.fullmatch("[a-z][a-z0-9_]*", evaluator)
  )


def split_extra(name: str) -> tuple[str, str] | None:
  """Splits the name of a result of a user's evaluator.

  Returns:
    Evaluator and metric: ("gap", "rivers") for "gap/rivers". None for names of
    other results.
  """
  evaluator, _, metric = name.partition("/")
  return (evaluator, metric) if metric and may_name(evaluator) else None


def parse(name: str) -> tuple[str, str, str]:
  """Returns split, language and measure of the name of a result.

  "test/de/mrr@100" gives ("test", "de", "mrr@100"). "tatoeba/de-en/accuracy"
  gives ("test", "de", "tatoeba to en"): the table shows it in the row of the
  language that is not English. The measure of "tatoeba/de-en/strict" is
  "tatoeba to en strict".
  A result of a protocol, "lareqa-mono/de/map", gives ("test", "de",
  "lareqa-mono map"): a protocol's name and its pool are joined by a hyphen.

  Raises:
    ValueError: if the name does not have these parts.
  """
  parts = name.split("/")
  if len(parts) == 3 and parts[0] in ("test", "dev"):
    return parts[0], parts[1], parts[2]
  if len(parts) == 3 and parts[0] == "tatoeba":
    source, _, target = parts[1].partition("-")
    kind = "" if parts[2] == "accuracy" else f" {parts[2]}"
    if source == ENGLISH:
      return "test", target, f"tatoeba from {source}{kind}"
    return "test", source, f"tatoeba to {target}{kind}"
  if len(parts) == 3 and re.fullmatch(PROTOCOL, parts[0]):
    return "test", parts[1], f"{parts[0]} {parts[2]}"
  raise ValueError(
    f"The result {name!r} has no place in the table; names are like"
    " test/de/mrr@100 or tatoeba/de-en/accuracy."
  )


def make_table(
  columns: Columns,
  groups: Mapping[str, str],
  queries: Queries = types.MappingProxyType({}),
) -> Table:
  """Orders results by language and group, and takes the means.

  Args:
    columns: Column name to results.
    groups: Language to group, both in the order of the table. Languages without
      a group come last. If it is empty, all languages are one group with one
      mean.
    queries: The values of the columns' queries, for intervals; a column may be
      missing.

  Raises:
    ValueError: if there are no results, or a result's name cannot be read.
  """
  if not any(columns.values()):
    raise ValueError("There are no results to report; evaluate first.")
  names, extra = {}, {}
  for name in dict.fromkeys(n for results in columns.values() for n in results):
    if found := split_extra(name):
      evaluator, metric = found
      extra.setdefault(evaluator, {})[metric] = name
    else:
      split, language, measure = parse(name)
      names.setdefault((language, split), {})[measure] = name

  def values(name):
    return tuple(results.get(name) for results in columns.values())

  measures = dict.fromkeys(
    measure for of_place in names.values() for measure in of_place
  )
  measures = [
    *(measure for measure in TITLES if measure in measures),
    *(measure for measure in measures if measure not in TITLES),
  ]
  is_grouped = bool(set(groups.values()) - {ALL})
  languages = [*groups, *sorted(language for language, _ in names)]
  found = [
    Row(
      label=language if split == "test" else f"{language} ({split})",
      group=groups.get(language, OTHER if is_grouped else ALL),
      languages=(language,),
      split=split,
      values={
        measure: values(names[language, split].get(measure))
        for measure in measures
      },
    )
    for language in dict.fromkeys(languages)
    for split in ("dev", "test")
    if (language, split) in names
  ]
  return Table(
    tuple(columns),
    tuple(measures),
    tuple(
      _with_intervals(
        _add_means(found, measures, groups, is_grouped), columns, queries
      )
    ),
    tuple(
      ExtraRow(evaluator, metric, values(name))
      for evaluator, metrics in extra.items()
      for metric, name in metrics.items()
    ),
  )


def _add_means(
  found: Sequence[Row],
  measures: Sequence[str],
  groups: Mapping[str, str],
  is_grouped: bool,
) -> list[Row]:
  """Puts the rows of each group together, with their mean at the end."""

  def mean(rows, group):
    return Row(
      label="mean",
      group=group,
      languages=tuple(row.languages[0] for row in rows),
      split="test",
      values=_means(rows, measures),
    )

  rows, zero_shot = [], []
  for group in dict.fromkeys([*groups.values(), *(row.group for row in found)]):
    members = [row for row in found if row.group == group]
    tested = [row for row in members if row.split == "test"]
    zero_shot += [row for row in tested if row.languages != (ENGLISH,)]
    rows += members
    if len(tested) > 1:
      rows.append(mean(tested, group))
  if is_grouped and len(zero_shot) > 1:
    rows.append(mean(zero_shot, ZERO_SHOT))
  return rows


def _means(
  rows: Sequence[Row], measures: Sequence[str]
) -> dict[str, tuple[float | None, ...]]:
  """Per measure, means over the rows that have a value in every column."""
  means = {}
  for measure in measures:
    values = [row.values[measure] for row in rows]
    complete: list[Any] = [row for row in values if None not in row]
    means[measure] = (
      tuple(float(mean) for mean in np.mean(complete, axis=0))
      if complete
      else (None,) * len(values[0])
    )
  return means


def _with_intervals(
  rows: Sequence[Row], columns: Columns, queries: Queries
) -> list[Row]:
  """Adds the intervals of all rows, where values of queries are known."""
  ends: list[dict[str, list[Interval | None]]] = [{} for _ in rows]
  for place, column in enumerate(columns):
    drawn = _Draws(queries.get(column, {}))
    for row, of_row in zip(rows, ends, strict=True):
      for measure, values in row.values.items():
        tests = [
          f"{row.split}/{language}"
          for language in _measured(rows, row, measure)
        ]
        found = drawn.interval(tests, measure)
        if found and values[place] is not None:
          of_measure = of_row.setdefault(measure, [None] * len(columns))
          of_measure[place] = found
  return [
    dataclasses.replace(
      row, intervals={name: tuple(each) for name, each in of_row.items()}
    )
    for row, of_row in zip(rows, ends, strict=True)
  ]


def _measured(rows: Sequence[Row], row: Row, measure: str) -> list[str]:
  """Returns the languages of a row over which a measure's mean is taken."""
  if len(row.languages) == 1:
    return list(row.languages)
  complete = {
    each.languages[0]
    for each in rows
    if each.label != "mean"
    and each.split == "test"
    and None not in each.values[measure]
  }
  return [language for language in row.languages if language in complete]


class _Draws:
  """The bootstrap means of a column's tests, made when they are needed."""

  def __init__(self, tests: Mapping[str, measures_lib.Values]):
    self._tests = tests
    self._made: dict[str, tuple[list[str], np.ndarray]] = {}

  def interval(self, tests: Sequence[str], measure: str) -> Interval | None:
    """Returns the interval of the mean over tests; None if it is not known."""
    means = [self._means(test, measure) for test in tests]
    known = [each for each in means if each is not None]
    if not known or len(known) < len(means):
      return None
    mean = np.mean(known, axis=0)
    low, high = significance.interval(mean).tolist()
    return low, high

  def _means(self, test: str, measure: str) -> np.ndarray | None:
    if test not in self._made:
      values = self._tests.get(test) or {}
      names = list(next(iter(values.values()), ()))
      means = np.empty((0, 0))
      if names:
        means = significance.bootstrap(
          significance.of_values(values, names), test
        )
      self._made[test] = names, means
    names, means = self._made[test]
    return means[:, names.index(measure)] if measure in names else None
