"""The results of variants in one table: a line per language, before and after.

"After" is the last column of a run, and "before" is its first one if it has
two. Languages, groups and means are those of `evals.report`.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from mlir_jax.evals import report
from mlir_jax.reporting import column_files, estimates, folders, variants

BEFORE, AFTER = "before", "after"


@dataclasses.dataclass(frozen=True)
class Line:
  """The values of a language, or the means of several languages.

  Attributes:
    row: Label, group, languages and split.
    values: (measure, BEFORE or AFTER) to the values of each variant's runs, by
      seed. A variant without values has none.
    intervals: The same keys to the interval of each variant, if it is one run.
  """

  row: report.Row
  values: Mapping[tuple[str, str], Sequence[Mapping[int, float]]]
  intervals: Mapping[tuple[str, str], Sequence[column_files.Interval | None]]

  @property
  def is_mean(self) -> bool:
    """Whether the values are means over languages."""
    return len(self.row.languages) > 1

  def estimate(
    self, measure: str, when: str, variant: int
  ) -> estimates.Estimate | None:
    """Returns the value of a variant; None if it has none."""
    values = self.values[measure, when][variant]
    interval = self.intervals[measure, when][variant]
    if not values:
      return None
    return estimates.over_seeds(list(values.values()), interval)

  def gain(self, measure: str, variant: int) -> estimates.Estimate | None:
    """Returns how much better a variant is than the first one, after training.

    If both have the same seeds, the interval is that of the differences of
    their seeds. Else there is no interval.
    """
    values = self.values[measure, AFTER]
    ours, base = values[variant], values[0]
    if not ours or not base:
      return None
    if ours.keys() == base.keys():
      return estimates.over_seeds([ours[s] - base[s] for s in base])
    difference = (
      estimates.over_seeds(list(ours.values())).value
      - estimates.over_seeds(list(base.values())).value
    )
    return estimates.Estimate(difference, None, 1)


@dataclasses.dataclass(frozen=True)
class Scores:
  """All results of variants.

  Attributes:
    measures: Names of the measures, the main one first.
    lines: The lines by group; a group of several languages ends with its mean.
    extra: The metrics of the user's evaluators: name to the same as in `Line`.
    has_before: Whether a variant has results from before training.
  """

  measures: tuple[str, ...]
  lines: tuple[Line, ...]
  extra: Mapping[str, Line]
  has_before: bool

  def of_groups(self) -> list[Line]:
    """Returns a line for each group: its mean, or its only language."""
    tested = [line for line in self.lines if line.row.split == "test"]
    means = {line.row.group: line for line in tested if line.is_mean}
    return list(
      {
        line.row.group: means.get(line.row.group, line) for line in tested
      }.values()
    )

  def with_measure(self, measure: str) -> list[Line]:
    """Returns the lines that have a value of a measure."""
    return [
      line
      for line in self.lines
      if any(any(line.values[measure, when]) for when in (BEFORE, AFTER))
    ]


def column(run: folders.Run, when: str) -> column_files.Column | None:
  """Returns the results of a run from before or after training, if any."""
  if when == AFTER:
    return run.columns[-1] if run.columns else None
  return run.columns[0] if len(run.columns) > 1 else None


def collect(found: Sequence[variants.Variant]) -> Scores | None:
  """Puts the results of variants into one table; None if there are none.

  A mean is over the languages that have a value in all runs.
  """
  groups = {}
  for variant in found:
    for run in variant.runs:
      groups = groups | {
        language: name
        for language, name in run.groups.items()
        if language not in groups
      }
  places = dict(_columns(found))
  if not any(each.results for each in places.values()):
    return None
  # `make_table` names its columns by texts. Of several seeds, the intervals are
  # over the seeds, so theirs over queries are not needed.
  table = report.make_table(
    {repr(place): each.results for place, each in places.items()},
    groups,
    {
      repr(place): each.queries
      for place, each in places.items()
      if len(found[place[0]].runs) == 1
    },
  )
  order = list(places)
  results = {place: _by_place(each.results) for place, each in places.items()}
  lines = tuple(
    _make_line(row, row.values, order, len(found), places, results)
    for row in table.rows
  )
  extra = {
    f"{row.evaluator}/{row.metric}": _make_line(
      report.Row(row.metric, row.evaluator, (), "test", {}),
      {"": row.values},
      order,
      len(found),
    )
    for row in table.extra
  }
  return Scores(
    table.measures, lines, extra, any(when == BEFORE for _, _, when in places)
  )


def _columns(
  found: Sequence[variants.Variant],
) -> Iterator[tuple[tuple[int, int, str], column_files.Column]]:
  """Yields (number of the variant, seed, when) and the column."""
  for number, variant in enumerate(found):
    for run in variant.runs:
      for when in (BEFORE, AFTER):
        if each := column(run, when):
          yield (number, run.config.get(variants.SEED, 0), when), each


def _by_place(results: Mapping[str, float]) -> dict[tuple, str]:
  """Returns (split, language, measure) to the name of the result."""
  return {
    report.parse(name): name for name in results if not report.split_extra(name)
  }


def _make_line(
  row: report.Row,
  row_values: Mapping[str, Sequence[float | None]],
  order: Sequence[tuple[int, int, str]],
  count: int,
  columns: Mapping[tuple, column_files.Column] | None = None,
  names: Mapping[tuple, Mapping[tuple, str]] | None = None,
) -> Line:
  """Sorts the values of a row by measure, time and variant.

  Args:
    row: The row of the table.
    row_values: Measure to a value for each column of the table.
    order: The columns of the table: variant, seed and time.
    count: How many variants there are.
    columns: The columns, for the intervals in their files; None for none.
    names: Column to the names of its results, as `_by_place` has them.
  """
  values, intervals, nothing = {}, {}, [None] * len(order)
  for measure, found in row_values.items():
    for when in (BEFORE, AFTER):
      values[measure, when] = [{} for _ in range(count)]
      intervals[measure, when] = [None] * count
    for place, value, ends in zip(
      order, found, row.intervals.get(measure, nothing), strict=True
    ):
      number, seed, when = place
      if value is None:
        continue
      values[measure, when][number][seed] = value
      interval = column_files.Interval(*ends) if ends else None
      if columns and names and len(row.languages) == 1:
        key = row.split, row.languages[0], measure
        interval = columns[place].intervals.get(
          names[place].get(key, ""), interval
        )
      intervals[measure, when][number] = interval
  return Line(row, values, intervals)
