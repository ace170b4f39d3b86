"""The table of results as text, Markdown and JSON."""

import dataclasses
import json
import os
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from etils import epath

from mlir_jax.evals import report
from mlir_jax.storage import writing

NOTE = (
  "Values × 100; means are over the languages with a value in every column."
)
INTERVAL_NOTE = (
  "In brackets: 95 % intervals, from 10,000 bootstraps over queries."
)
EXTRA = "Other measures"
EXTRA_NOTE = (
  f"{EXTRA} are as evaluators and protocols return them, and in no mean."
)
MISSING = "–"
WIDTH = 100  # Characters of a line of text; wider tables continue below.


class _Head(NamedTuple):
  """The first cell of a line, and the heading above it."""

  group: str
  label: str


@dataclasses.dataclass(frozen=True)
class _Block:
  """Columns of cells under one title: a measure, or the shared texts."""

  title: str
  headers: tuple[str, ...]
  cells: tuple[tuple[str, ...], ...]  # Row by row.

  @property
  def widths(self) -> list[int]:
    """Characters of each column."""
    columns = zip(self.headers, *self.cells, strict=True)
    widths = [max(map(len, column)) for column in columns]
    widths[0] += max(0, len(self.title) - sum(widths) - 2 * len(widths) + 2)
    return widths


class _Part(NamedTuple):
  """Lines with the same blocks.

  Attributes:
    about: What a line is about: "language" or "evaluator or protocol".
    heads: The beginning of each line.
    blocks: The rest of each line.
  """

  about: str
  heads: list[_Head]
  blocks: list[_Block]


def to_text(
  table: report.Table,
  shared: report.Shared | None = None,
  notes: Sequence[str] = (),
  intervals: bool = False,
) -> str:
  """Renders the table for a terminal, at most `WIDTH` characters a line.

  Args:
    table: The table.
    shared: Language to {"queries", "shared_queries", "passages",
      "shared_passages"}: the number of test texts, and how many of them
      training saw.
    notes: Lines below the table: how the values were measured.
    intervals: Whether a value has its 95 % interval behind it.
  """
  texts = []
  for _, heads, waiting in _parts(table, shared or {}, intervals):
    while waiting:
      count = len(waiting)
      while count > 1 and _width(heads, waiting[:count]) > WIDTH:
        count -= 1
      texts.append("\n".join(_lines(heads, waiting[:count])))
      waiting = waiting[count:]
  return (
    "\n\n".join([*texts, "\n".join(_notes(table, notes, intervals))]) + "\n"
  )


def to_markdown(
  table: report.Table,
  shared: report.Shared | None = None,
  notes: Sequence[str] = (),
  intervals: bool = False,
) -> str:
  """Renders the table in Markdown; see `to_text`."""
  parts = [
    "\n".join(_markdown_lines(part))
    for part in _parts(table, shared or {}, intervals)
  ]
  return "\n\n".join([*parts, *_notes(table, notes, intervals)]) + "\n"


def to_json(
  table: report.Table,
  shared: report.Shared | None = None,
  notes: Sequence[str] = (),
) -> str:
  """Renders the table as JSON, with the values unrounded; see `to_text`.

  The intervals are always there, where they are known.
  """
  rows = [
    {
      **dataclasses.asdict(row),
      "values": {
        measure: dict(zip(table.columns, values, strict=True))
        for measure, values in row.values.items()
      },
      "intervals": {
        measure: dict(zip(table.columns, ends, strict=True))
        for measure, ends in row.intervals.items()
      },
    }
    for row in table.rows
  ]
  extra = {}
  for row in table.extra:
    values = dict(zip(table.columns, row.values, strict=True))
    extra.setdefault(row.evaluator, {})[row.metric] = values
  content = {
    "columns": table.columns,
    "measures": table.measures,
    "rows": rows,
    "extra": extra,
    "shared_with_training": shared or {},
    "notes": list(notes),
  }
  return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def write(
  columns: report.Columns,
  groups: Mapping[str, str],
  folder: str | os.PathLike,
  *,
  shared: report.Shared | None = None,
  notes: Sequence[str] = (),
  queries: report.Queries = types.MappingProxyType({}),
  intervals: bool = False,
) -> str:
  """Writes report.txt, report.md and report.json, each whole or not at all.

  Args:
    columns: As in `report.make_table`.
    groups: As in `report.make_table`.
    folder: The folder of the files; it is made if missing.
    shared: As in `to_text`.
    notes: As in `to_text`.
    queries: As in `report.make_table`.
    intervals: As in `to_text`.

  Returns:
    The text of report.txt.

  Raises:
    ValueError: if there are no results, or a result's name cannot be read.
  """
  table = report.make_table(columns, groups, queries)
  text = to_text(table, shared, notes, intervals)
  folder = epath.Path(folder)
  for name, content in (
    ("report.txt", text),
    ("report.md", to_markdown(table, shared, notes, intervals)),
    ("report.json", to_json(table, shared, notes)),
  ):
    writing.write_aside(str(folder / name), content)
  return text


def _notes(
  table: report.Table, notes: Sequence[str], intervals: bool
) -> list[str]:
  """The lines below a table."""
  return [
    *([NOTE] if table.rows else ()),
    *([INTERVAL_NOTE] if table.rows and intervals else ()),
    *([EXTRA_NOTE] if table.extra else ()),
    *notes,
  ]


def _parts(
  table: report.Table, shared: report.Shared, intervals: bool
) -> Iterator[_Part]:
  """The languages with their measures, then what no language has."""
  if table.rows:
    heads = [_Head(row.group, row.label) for row in table.rows]
    blocks = [
      _measure_block(table, measure, intervals) for measure in table.measures
    ]
    if shared:
      blocks.append(_shared_block(table, shared))
    yield _Part("language", heads, blocks)
  if table.extra:
    heads = [_Head(row.evaluator, row.metric) for row in table.extra]
    cells = tuple(
      tuple(
        MISSING if value is None else f"{value:.4g}" for value in row.values
      )
      for row in table.extra
    )
    block = _Block(EXTRA, table.columns, cells)
    yield _Part("evaluator or protocol", heads, [block])


def _measure_block(
  table: report.Table, measure: str, intervals: bool
) -> _Block:
  """A measure in every column."""

  def cell(row, place):
    value = row.values[measure][place]
    if value is None:
      return MISSING
    ends = row.intervals.get(measure, {}) if intervals else {}
    if not ends or not ends[place]:
      return f"{100 * value:.1f}"
    low, high = (100 * end for end in ends[place])
    return f"{100 * value:.1f} [{low:.1f}, {high:.1f}]"

  cells = tuple(
    tuple(cell(row, place) for place in range(len(table.columns)))
    for row in table.rows
  )
  return _Block(report.title(measure), table.columns, cells)


def _shared_block(table: report.Table, shared: report.Shared) -> _Block:
  """How many test texts of a language were in training."""
  kinds = ("queries", "passages")

  def counts(row):
    # Rows of the dev split and of means have other labels: their cells are "".
    found = shared.get(row.label)
    return tuple(
      f"{found[f'shared_{kind}']:,} of {found[kind]:,}" if found else ""
      for kind in kinds
    )

  cells = tuple(counts(row) for row in table.rows)
  return _Block("Also in training", kinds, cells)


def _width(heads: Sequence[_Head], blocks: Sequence[_Block]) -> int:
  """Characters of the longest line of these blocks."""
  return max(map(len, _lines(heads, blocks)))


def _lines(heads: Sequence[_Head], blocks: Sequence[_Block]) -> Iterator[str]:
  """The lines of blocks side by side, under the names of the groups."""
  margin = 4 + max(len(head.label) for head in heads)

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
  for number, head in enumerate(heads):
    texts = [block.cells[number] for block in blocks]
    if not set().union(*texts) - {"", MISSING}:
      continue  # This row has no value in these blocks.
    if head.group != group:
      group = head.group
      yield group
    yield line(f"  {head.label}", map(cells, blocks, texts))


def _markdown_lines(part: _Part) -> Iterator[str]:
  """The lines of blocks side by side, under the names of the groups."""
  headers = [
    f"{block.title}<br>{header}"
    for block in part.blocks
    for header in block.headers
  ]
  yield " | ".join([f"| {part.about}", *headers]) + " |"
  yield "|:--" + "|--:" * len(headers) + "|"
  group = None
  for number, head in enumerate(part.heads):
    if head.group != group:
      group = head.group
      yield f"| **{group}** " + "| " * len(headers) + "|"
    cells = [c for block in part.blocks for c in block.cells[number]]
    cells.insert(0, head.label)
    if part.about == "language" and head.label == "mean":
      cells = [f"*{cell}*" if cell else "" for cell in cells]
    yield "| " + " | ".join(cells) + " |"
