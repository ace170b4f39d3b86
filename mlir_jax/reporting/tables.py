"""The tables of a report, as texts; the page and the paper show the same."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from mlir_jax.evals import report
from mlir_jax.reporting import diagnostics, estimates, scores, variants

NONE = "–"


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of a table.

  Attributes:
    head: What the row is about.
    cells: Its other cells; none in a heading over rows.
    strong: Whether it is a mean.
  """

  head: str
  cells: tuple[str, ...] = ()
  strong: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of texts.

  Attributes:
    title: What it shows.
    header: A text over each column, the heads' column included.
    rows: The rows.
    numbers: Whether the cells are numbers.
  """

  title: str
  header: tuple[str, ...]
  rows: tuple[Row, ...]
  numbers: bool = True


def to_markdown(table: Table) -> str:
  """Renders a table in Markdown, without its title."""

  def line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(map(escape, cells)) + " |"

  width = len(table.header) - 1
  lines = [
    line(table.header),
    "|:--" + ("|--:" if table.numbers else "|:--") * width + "|",
  ]
  for row in table.rows:
    if not row.cells:
      lines.append(f"| **{escape(row.head)}** " + "| " * width + "|")
    elif row.strong:
      cells = (f"*{escape(cell)}*" for cell in (row.head, *row.cells))
      lines.append("| " + " | ".join(cells) + " |")
    else:
      lines.append(line((row.head, *row.cells)))
  return "\n".join(lines) + "\n"


def escape(text: str) -> str:
  """Returns a text that Markdown shows as it is, on one line."""
  text = text.replace("\\", "\\\\").replace("&", "&amp;")
  for sign in ("`", "*", "_", "<", ">", "|", "~", "]("):
    text = text.replace(sign, sign.replace(sign[-1], f"\\{sign[-1]}"))
  return " ".join(text.split())


def of_groups(
  found: Sequence[variants.Variant], collected: scores.Scores, measure: str
) -> Table:
  """A row per variant: the means over groups, and how much better they are."""
  lines = [
    line
    for line in collected.of_groups()
    if any(line.values[measure, scores.AFTER])
  ]
  rows = []
  for number, variant in enumerate(found):
    if collected.has_before:
      before = [line.estimate(measure, scores.BEFORE, number) for line in lines]
      if any(before):
        rows.append(
          Row(
            f"{variant.title}, before",
            tuple(estimates.to_text(each) for each in before),
          )
        )
    after = [line.estimate(measure, scores.AFTER, number) for line in lines]
    rows.append(
      Row(variant.title, tuple(estimates.to_text(each) for each in after), True)
    )
    if number:
      gains = (line.gain(measure, number) for line in lines)
      rows.append(Row(f"gain over {found[0].name}", tuple(map(_signed, gains))))
  return Table(
    f"{report.title(measure)} × 100, means over groups of languages",
    ("", *(line.row.group for line in lines)),
    tuple(rows),
  )


def _signed(gain: estimates.Estimate | None) -> str:
  text = estimates.to_text(gain)
  return f"+{text}" if gain and gain.value >= 0 else text.replace("-", "−", 1)


def of_languages(
  found: Sequence[variants.Variant], collected: scores.Scores, measure: str
) -> Table:
  """A row per language: each variant, before and after training."""
  columns = [
    (number, when)
    for number in range(len(found))
    for when in (scores.BEFORE, scores.AFTER)
    if any(line.values[measure, when][number] for line in collected.lines)
  ]
  rows, group = [], None
  for line in collected.with_measure(measure):
    if line.row.group != group:
      group = line.row.group
      rows.append(Row(group))
    rows.append(
      Row(
        line.row.label,
        tuple(
          estimates.to_text(line.estimate(measure, when, number))
          for number, when in columns
        ),
        line.is_mean,
      )
    )
  return Table(
    f"{report.title(measure)} × 100",
    (
      "language",
      *(_column_name(found[number], when) for number, when in columns),
    ),
    tuple(rows),
  )


def _column_name(variant: variants.Variant, when: str) -> str:
  has_before = scores.column(variant.first, scores.BEFORE)
  return f"{variant.title}, {when}" if has_before else variant.title


def of_extra(
  found: Sequence[variants.Variant], collected: scores.Scores
) -> Table | None:
  """A row per metric of evaluators and protocols; None if there are none."""
  # A protocol's numbers are also results.
  shown = {
    name
    for variant in found
    for run in variant.runs
    for column in run.columns
    for name in column.diagnostics
  }
  lines = {
    name: line for name, line in collected.extra.items() if name not in shown
  }
  columns = [
    (number, when)
    for number in range(len(found))
    for when in (scores.BEFORE, scores.AFTER)
    if any(line.values["", when][number] for line in lines.values())
  ]
  if not columns:
    return None
  return Table(
    "Other measures (as their evaluators return them)",
    (
      "metric",
      *(_column_name(found[number], when) for number, when in columns),
    ),
    tuple(
      Row(
        name,
        tuple(
          estimates.to_text(line.estimate("", when, number), scale=1)
          for number, when in columns
        ),
      )
      for name, line in lines.items()
    ),
  )


def of_config(
  found: Sequence[variants.Variant], defaults: Mapping
) -> list[Table]:
  """What differs between variants, then what is not the default."""
  names = tuple(variant.title for variant in found)
  titles = []
  if differing := variants.differing_fields(found, defaults):
    titles.append(
      _of_fields("Fields that differ between runs", names, differing)
    )
  if changed := variants.changed_fields(found, defaults):
    titles.append(
      _of_fields(
        "Fields that are not the default", ("default", *names), changed
      )
    )
  return titles


def _of_fields(
  title: str, names: Sequence[str], fields: Mapping[str, Sequence[str]]
) -> Table:
  rows = tuple(Row(name, tuple(texts)) for name, texts in fields.items())
  return Table(title, ("field", *names), rows, numbers=False)


def of_shared(found: Sequence[variants.Variant]) -> Table | None:
  """A row per language: texts of the tests that training saw, per variant."""
  known = [variant for variant in found if variant.first.shared]
  languages = dict.fromkeys(
    language for variant in known for language in variant.first.shared
  )
  if not languages:
    return None

  def text(counts: Mapping[str, int]) -> str:
    if not counts:
      return NONE
    return (
      f"{counts['shared_queries']:,} of {counts['queries']:,} queries,"
      f" {counts['shared_passages']:,} of {counts['passages']:,} passages"
    )

  return Table(
    "Texts of the tests that training saw",
    ("language", *(variant.name for variant in known)),
    tuple(
      Row(
        language,
        tuple(text(each.first.shared.get(language, {})) for each in known),
      )
      for language in languages
    ),
    numbers=False,
  )


def of_diagnostics(found: Sequence[variants.Variant]) -> Table | None:
  """A row per diagnostic that is a number; None if there are none."""
  columns, names = [], {}
  for variant in found:
    for when in (scores.BEFORE, scores.AFTER):
      of_runs = [
        diagnostics.numbers(each.diagnostics)
        for run in variant.runs
        if (each := scores.column(run, when)) and each.diagnostics
      ]
      if of_runs:
        columns.append((_column_name(variant, when), of_runs))
        names |= dict.fromkeys(name for each in of_runs for name in each)
  if not names:
    return None

  def text(of_runs: Sequence[Mapping], name: str) -> str:
    values = [each[name] for each in of_runs if name in each]
    if not values:
      return NONE
    return estimates.to_text(estimates.over_seeds(values), scale=1)

  return Table(
    "Is it language-agnostic?",
    ("diagnostic", *(name for name, _ in columns)),
    tuple(
      Row(name, tuple(text(of_runs, name) for _, of_runs in columns))
      for name in names
    ),
  )


def of_by_language(name: str, found: Sequence[diagnostics.ByLanguage]) -> Table:
  """A row per model: a diagnostic's number for each language."""
  languages = dict.fromkeys(each for one in found for each in one.values)
  return Table(
    name,
    ("", *languages),
    tuple(
      Row(
        one.model.name,
        tuple(
          f"{one.values[each]:.3g}" if each in one.values else NONE
          for each in languages
        ),
      )
      for one in found
    ),
  )
