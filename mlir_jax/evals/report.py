"""One table of all results, a row per language: text, Markdown, JSON.

Results are {name: value} with names as the evaluators give them; a column is
such a set of results under a name, e.g. "step 0". A language's group says what
training had of it, and means are taken over groups: it is the groups without
retrieval or parallel text that zero-shot transfer is judged by.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from mlir_jax import stored, workdir

Columns = Mapping[str, Mapping[str, float]]
Shared = Mapping[str, Mapping[str, int]]

# In the order of the table; what others there are follows.
TITLES = {
  "mrr@100": "MRR@100",
  "ndcg@10": "nDCG@10",
  "r@100": "R@100",
  "success@1": "Success@1",
  "tatoeba to en": "Tatoeba → en",
  "tatoeba from en": "Tatoeba en →",
}
MAIN = "mrr@100"
ENGLISH = "en"
OTHER = "other languages"
ALL = "all languages"  # Where nothing is known of what training had of them.
ZERO_SHOT = "all but English"
NOTE = (
  "Values × 100; means are over the languages with a value in every column."
)
MISSING = "–"
MAKE_AGAIN = "Delete it, or make it again with mlir_jax.evaluate."
WIDTH = 100  # Characters of the text's lines; the rest goes below.


@dataclasses.dataclass(frozen=True)
class Row:
  """A language's values, or the means of several.

  Attributes:
    label: The language, with its split unless that is "test"; or "mean".
    group: Name of its group.
    languages: The language, or those that the mean is over: for a measure,
      those of them that have a value in every column.
    split: "test", or "dev".
    values: Measure to a value per column; None where there is none.
  """

  label: str
  group: str
  languages: tuple[str, ...]
  split: str
  values: Mapping[str, tuple[float | None, ...]]


@dataclasses.dataclass(frozen=True)
class Table:
  """Results by language, group, measure and column.

  Attributes:
    columns: Names of the columns, which each measure has.
    measures: Names of the measures.
    rows: The rows by group; of a group of several languages, the mean is the
      last. At the end stands the mean over all languages but English.
  """

  columns: tuple[str, ...]
  measures: tuple[str, ...]
  rows: tuple[Row, ...]


def read_results(path: str | os.PathLike) -> dict[str, float]:
  """Results as `suite.Suite.table` wrote them: name to value.

  Raises:
    UnreadableError: if the file is damaged; it names the file and the result.
  """
  results = stored.read_json(path, mend=MAKE_AGAIN)
  for name, value in results.items():
    problem = ""
    try:
      parse(name)
    except ValueError as error:
      problem = str(error)
    if type(value) not in (int, float):
      problem = f"{name} is {value!r}, not a number."
    if problem:
      raise stored.UnreadableError(f"{path}: {problem} {MAKE_AGAIN}")
  return results


def parse(name: str) -> tuple[str, str, str]:
  """Split, language and measure of a result's name.

  "test/de/mrr@100" gives ("test", "de", "mrr@100"), "tatoeba/de-en/accuracy"
  ("test", "de", "tatoeba to en"): a row is about the language that is not
  English.

  Raises:
    ValueError: if the name has not these parts.
  """
  parts = name.split("/")
  if len(parts) == 3 and parts[0] in ("test", "dev"):
    return parts[0], parts[1], parts[2]
  if len(parts) == 3 and parts[0] == "tatoeba":
    source, _, target = parts[1].partition("-")
    if source == ENGLISH:
      return "test", target, f"tatoeba from {source}"
    return "test", source, f"tatoeba to {target}"
  raise ValueError(
    f"The result {name!r} has no place in the table; names are like"
    " test/de/mrr@100 or tatoeba/de-en/accuracy."
  )


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


def make_table(columns: Columns, groups: Mapping[str, str]) -> Table:
  """Orders results by language and group, and takes the means.

  Args:
    columns: Column name to results.
    groups: Language to group, both in the order of the table. Languages that
      it lacks come last. If it is empty, there is one group of all languages,
      and one mean.

  Raises:
    ValueError: if a result's name cannot be read, or there are none.
  """
  if not any(columns.values()):
    raise ValueError("There are no results to report; evaluate first.")
  places = {}
  for results in columns.values():
    for name in results:
      split, language, measure = parse(name)
      places.setdefault((language, split), {})[measure] = name
  found = dict.fromkeys(name for row in places.values() for name in row)
  measures = [name for name in TITLES if name in found]
  measures += [name for name in found if name not in TITLES]

  is_grouped = bool(set(groups.values()) - {ALL})
  grouped = {group: [] for group in groups.values()}
  languages = dict.fromkeys(
    [*groups, *sorted(language for language, _ in places)]
  )
  for language in languages:
    for split in ("dev", "test"):
      if (language, split) not in places:
        continue
      names = places[language, split]
      group = groups.get(language, OTHER if is_grouped else ALL)
      grouped.setdefault(group, []).append(
        Row(
          label=language if split == "test" else f"{language} ({split})",
          group=group,
          languages=(language,),
          split=split,
          values={
            measure: tuple(
              results.get(names.get(measure)) for results in columns.values()
            )
            for measure in measures
          },
        )
      )

  def mean(rows, group):
    return Row(
      label="mean",
      group=group,
      languages=tuple(row.languages[0] for row in rows),
      split="test",
      values=_means(rows, measures),
    )

  rows, zero_shot = [], []
  for group, members in grouped.items():
    tested = [row for row in members if row.split == "test"]
    zero_shot += [row for row in tested if row.languages != (ENGLISH,)]
    rows += members
    if len(tested) > 1:
      rows.append(mean(tested, group))
  if is_grouped and len(zero_shot) > 1:
    rows.append(mean(zero_shot, ZERO_SHOT))
  return Table(tuple(columns), tuple(measures), tuple(rows))


@dataclasses.dataclass(frozen=True)
class _Block:
  """Columns of cells under one title: a measure's, or the shared texts'."""

  title: str
  headers: tuple[str, ...]
  cells: tuple[tuple[str, ...], ...]  # Row by row.

  @property
  def widths(self) -> list[int]:
    columns = zip(self.headers, *self.cells, strict=True)
    widths = [max(map(len, column)) for column in columns]
    widths[0] += max(0, len(self.title) - sum(widths) - 2 * len(widths) + 2)
    return widths


def _blocks(table: Table, shared: Shared) -> list[_Block]:
  """The table's columns as text, measure by measure, then the shared texts."""
  blocks = [
    _Block(
      TITLES.get(measure, measure),
      table.columns,
      tuple(
        tuple(
          MISSING if value is None else f"{100 * value:.1f}"
          for value in row.values[measure]
        )
        for row in table.rows
      ),
    )
    for measure in table.measures
  ]
  if shared:
    kinds = ("queries", "passages")

    def counts(row):
      found = shared.get(row.label)  # Not of the dev split nor of means.
      return tuple(
        f"{found[f'shared_{kind}']:,} of {found[kind]:,}" if found else ""
        for kind in kinds
      )

    cells = tuple(counts(row) for row in table.rows)
    blocks.append(_Block("Also in training", kinds, cells))
  return blocks


def _lines(table: Table, blocks: Sequence[_Block]) -> Iterator[str]:
  """The lines of blocks side by side, under the groups' names."""
  margin = 4 + max(len(row.label) for row in table.rows)

  def line(label, parts):
    return (label.ljust(margin) + "   ".join(parts)).rstrip()

  def cells(block, texts):
    padded = zip(texts, block.widths, strict=True)
    return "  ".join(text.rjust(width) for text, width in padded)

  def width(block):
    return sum(block.widths) + 2 * len(block.widths) - 2

  yield line("", [block.title.center(width(block)) for block in blocks])
  yield line("", [cells(block, block.headers) for block in blocks])
  yield line("", ["─" * width(block) for block in blocks])
  group = None
  for number, row in enumerate(table.rows):
    texts = [block.cells[number] for block in blocks]
    if not set().union(*texts) - {"", MISSING}:
      continue  # None of these measures was taken of it.
    if row.group != group:
      group = row.group
      yield group
    yield line(f"  {row.label}", map(cells, blocks, texts))


def to_text(
  table: Table, shared: Shared | None = None, notes: Sequence[str] = ()
) -> str:
  """The table for a terminal, in parts of at most `WIDTH` characters a line.

  Args:
    table: The table.
    shared: Language to {"queries", "shared_queries", "passages",
      "shared_passages"}: test texts, and those of them that training saw.
    notes: Lines below it: how the values were measured.
  """
  parts, waiting = [], _blocks(table, shared or {})
  while waiting:
    count = len(waiting)
    while count > 1 and max(map(len, _lines(table, waiting[:count]))) > WIDTH:
      count -= 1
    parts.append("\n".join(_lines(table, waiting[:count])))
    waiting = waiting[count:]
  return "\n\n".join([*parts, "\n".join([NOTE, *notes])]) + "\n"


def to_markdown(
  table: Table, shared: Shared | None = None, notes: Sequence[str] = ()
) -> str:
  """The table in Markdown; see `to_text`."""
  blocks = _blocks(table, shared or {})
  headers = [
    f"{block.title}<br>{header}" for block in blocks for header in block.headers
  ]
  lines = [
    " | ".join(["| language", *headers]) + " |",
    "|:--" + "|--:" * len(headers) + "|",
  ]
  group = None
  for number, row in enumerate(table.rows):
    if row.group != group:
      group = row.group
      lines.append(f"| **{group}** " + "| " * len(headers) + "|")
    cells = [row.label, *(c for block in blocks for c in block.cells[number])]
    if row.label == "mean":
      cells = [f"*{cell}*" if cell else "" for cell in cells]
    lines.append("| " + " | ".join(cells) + " |")
  below = [line for note in (NOTE, *notes) for line in ("", note)]
  return "\n".join([*lines, *below]) + "\n"


def to_json(
  table: Table, shared: Shared | None = None, notes: Sequence[str] = ()
) -> str:
  """The table as JSON, with values from 0 to 1; see `to_text`."""
  rows = [
    {
      **dataclasses.asdict(row),
      "values": {
        measure: dict(zip(table.columns, values, strict=True))
        for measure, values in row.values.items()
      },
    }
    for row in table.rows
  ]
  content = {
    "columns": table.columns,
    "measures": table.measures,
    "rows": rows,
    "shared_with_training": shared or {},
    "notes": list(notes),
  }
  return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def write(
  columns: Columns,
  groups: Mapping[str, str],
  folder: str | os.PathLike,
  *,
  shared: Shared | None = None,
  notes: Sequence[str] = (),
) -> str:
  """Writes report.txt, report.md and report.json, each whole or not at all.

  Args:
    columns: As in `make_table`.
    groups: As in `make_table`.
    folder: Where to; made if missing.
    shared: As in `to_text`.
    notes: As in `to_text`.

  Returns:
    The text.

  Raises:
    ValueError: as `make_table` says: there must be a result.
  """
  table = make_table(columns, groups)
  text = to_text(table, shared, notes)
  folder = epath.Path(folder)
  for name, content in (
    ("report.txt", text),
    ("report.md", to_markdown(table, shared, notes)),
    ("report.json", to_json(table, shared, notes)),
  ):
    workdir.write_aside(str(folder / name), content)
  return text
