"""Compares two systems query by query: differences, intervals, p-values."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mlir_jax.evals import measures, report, significance

# Test ("test/de"), query id and measure to value.
Tests = Mapping[str, measures.Values]

MEAN = "mean"
NOTE = (
  "Values and differences × 100. In brackets: 95 % intervals of the difference,"
  " from 10,000 bootstraps over queries. p: two-sided paired randomisation test"
  " with 100,000 random swaps. Holm: p, corrected for the number of languages"
  " in the table. mean: over the languages; its bootstraps and swaps are of"
  " each language's queries."
)


@dataclasses.dataclass(frozen=True)
class Line:
  """A measure of a test in two systems.

  Attributes:
    test: "de", "en (dev)", or `MEAN` for the mean over the splits "test".
    queries: The number of queries.
    first: The mean of the first system.
    second: The mean of the second one.
    difference: Second less first.
    interval: The 95 % interval of the difference.
    p: The p-value.
    corrected: The p-value with Holm's correction for the number of tests of the
      same split; None for `MEAN`.
  """

  test: str
  queries: int
  first: float
  second: float
  difference: float
  interval: tuple[float, float]
  p: float
  corrected: float | None = None


class Comparison:
  """Two systems on the tests that both have.

  Attributes:
    names: The two systems.
    lines: Measure to its lines: the tests, then the mean.
    notes: Lines that say what is left out.
  """

  def __init__(self, names: tuple[str, str], first: Tests, second: Tests):
    """Computes all lines.

    Args:
      names: The two systems.
      first: The values of the first system's queries.
      second: Those of the second one.

    Raises:
      ValueError: if they share no test or no measure, or the judged queries of
        a test are not the same.
    """
    self.names = names
    self.notes = [
      f"{test} is left out: only {name} has it."
      for name, ours, theirs in (
        (names[0], first, second),
        (names[1], second, first),
      )
      for test in ours
      if test not in theirs
    ]
    shared = [test for test in first if test in second]
    if not shared:
      raise ValueError(f"{names[0]} and {names[1]} have no test in common.")
    for test in shared:
      ours, theirs = first[test], second[test]
      if ours.keys() != theirs.keys():
        raise ValueError(
          f"{test}: {names[0]} has {len(ours):,} judged queries,"
          f" {names[1]} {len(theirs):,}, and"
          f" {len(ours.keys() & theirs.keys()):,} are the same. Evaluate both"
          " on the same tests."
        )
    found = {test: _names(first[test], second[test]) for test in shared}
    ordered = dict.fromkeys(name for names in found.values() for name in names)
    if not ordered:
      raise ValueError(f"{names[0]} and {names[1]} have no measure in common.")
    self.lines: dict[str, list[Line]] = {name: [] for name in ordered}
    drawn: dict[str, list[_Test]] = {name: [] for name in ordered}
    for test in shared:
      for name, of_test in _compare(
        test, found[test], first[test], second[test]
      ):
        drawn[name].append(of_test)
    for name, tests in drawn.items():
      for split in dict.fromkeys(each.split for each in tests):
        family = [each for each in tests if each.split == split]
        corrected = significance.holm([each.line.p for each in family])
        self.lines[name] += [
          dataclasses.replace(each.line, corrected=p)
          for each, p in zip(family, corrected, strict=True)
        ]
      tested = [each for each in tests if each.split == "test"]
      if len(tested) > 1:
        self.lines[name].append(_mean(tested))


class _Test:
  """A measure of a test: its line, and what the mean's line needs.

  Attributes:
    line: The line, without the correction.
    split: "test" or "dev".
    differences: float64 [n, 1], second less first.
    drawn: float64 [R, 1], bootstrap means of the differences.
  """

  def __init__(
    self, line: Line, split: str, differences: np.ndarray, drawn: np.ndarray
  ):
    self.line = line
    self.split = split
    self.differences = differences
    self.drawn = drawn


def _names(first: measures.Values, second: measures.Values) -> list[str]:
  """Returns the measures that all queries of both systems have."""
  theirs = next(iter(second.values()), {})
  return [name for name in next(iter(first.values()), {}) if name in theirs]


def _label(test: str) -> str:
  split, _, language = test.partition("/")
  return language if split == "test" else f"{language} ({split})"


def _compare(
  test: str,
  names: Sequence[str],
  first: measures.Values,
  second: measures.Values,
) -> Iterator[tuple[str, _Test]]:
  """Yields each measure of a test with what was computed."""
  if not names:
    return
  ours = significance.of_values(first, names)
  theirs = significance.of_values(
    {query_id: second[query_id] for query_id in first}, names
  )
  differences = theirs - ours
  drawn = significance.bootstrap(differences, test)
  low, high = significance.interval(drawn).tolist()
  p_values = significance.randomisation([differences], test).tolist()
  for place, name in enumerate(names):
    column = slice(place, place + 1)
    line = Line(
      test=_label(test),
      queries=len(first),
      first=float(ours[:, place].mean()),
      second=float(theirs[:, place].mean()),
      difference=float(differences[:, place].mean()),
      interval=(low[place], high[place]),
      p=p_values[place],
    )
    yield (
      name,
      _Test(
        line, test.partition("/")[0], differences[:, column], drawn[:, column]
      ),
    )


def _mean(tests: Sequence[_Test]) -> Line:
  """Returns the line of the mean over languages."""
  lines = [each.line for each in tests]
  low, high = significance.interval(
    np.mean([each.drawn for each in tests], axis=0)
  )
  return Line(
    test=MEAN,
    queries=sum(line.queries for line in lines),
    first=float(np.mean([line.first for line in lines])),
    second=float(np.mean([line.second for line in lines])),
    difference=float(np.mean([line.difference for line in lines])),
    interval=(float(low[0]), float(high[0])),
    p=float(
      significance.randomisation([each.differences for each in tests], MEAN)[0]
    ),
  )


def _rows(
  comparison: Comparison, lines: Sequence[Line]
) -> Iterator[tuple[str, ...]]:
  """Yields the head of a table and its rows, as texts."""
  yield "", "queries", *comparison.names, "difference", "p", "Holm"
  for line in lines:
    low, high = (100 * end for end in line.interval)
    yield (
      line.test,
      f"{line.queries:,}",
      f"{100 * line.first:.1f}",
      f"{100 * line.second:.1f}",
      f"{100 * line.difference:+.1f} [{low:+.1f}, {high:+.1f}]",
      _p(line.p),
      "" if line.corrected is None else _p(line.corrected),
    )


def _p(value: float) -> str:
  return "<0.0001" if value < 0.0001 else f"{value:.4f}"


def to_text(comparison: Comparison) -> str:
  """Renders a table for each measure, for a terminal."""
  parts = []
  for name, lines in comparison.lines.items():
    rows = list(_rows(comparison, lines))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    shown = [report.title(name)]
    for row in rows:
      cells = [row[0].ljust(widths[0])]
      cells += [
        cell.rjust(width)
        for cell, width in zip(row[1:], widths[1:], strict=True)
      ]
      shown.append("  ".join(cells).rstrip())
    parts.append("\n".join(shown))
  return "\n\n".join([*parts, "\n".join([NOTE, *comparison.notes])]) + "\n"


def to_markdown(comparison: Comparison) -> str:
  """Renders a table for each measure, in Markdown."""
  parts = []
  for name, lines in comparison.lines.items():
    head, *rows = _rows(comparison, lines)
    shown = [
      "| " + " | ".join([report.title(name), *head[1:]]) + " |",
      "|:--" + "|--:" * (len(head) - 1) + "|",
      *("| " + " | ".join(row) + " |" for row in rows),
    ]
    parts.append("\n".join(shown))
  return "\n\n".join([*parts, NOTE, *comparison.notes]) + "\n"


def to_json(comparison: Comparison) -> str:
  """Renders all lines as JSON, with the values unrounded."""
  content = {
    "systems": comparison.names,
    "measures": {
      name: [dataclasses.asdict(line) for line in lines]
      for name, lines in comparison.lines.items()
    },
    "notes": comparison.notes,
  }
  return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
