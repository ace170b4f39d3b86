"""The table of results as text, Markdown and JSON."""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence

from etils import epath

from mlir_jax.evals import report
from mlir_jax.storage import writing

NOTE = (
  "Values × 100; means are over the languages with a value in every column."
)
MISSING = "–"
WIDTH = 100  # Characters of the text's lines; the rest goes below.


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


def _blocks(table: report.Table, shared: report.Shared) -> list[_Block]:
  """The table's columns as text, measure by measure, then the shared texts."""
  blocks = [
    _Block(
      report.TITLES.get(measure, measure),
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


def _lines(table: report.Table, blocks: Sequence[_Block]) -> Iterator[str]:
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
  table: report.Table,
  shared: report.Shared | None = None,
  notes: Sequence[str] = (),
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
  table: report.Table,
  shared: report.Shared | None = None,
  notes: Sequence[str] = (),
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
  table: report.Table,
  shared: report.Shared | None = None,
  notes: Sequence[str] = (),
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
  columns: report.Columns,
  groups: Mapping[str, str],
  folder: str | os.PathLike,
  *,
  shared: report.Shared | None = None,
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
  table = report.make_table(columns, groups)
  text = to_text(table, shared, notes)
  folder = epath.Path(folder)
  for name, content in (
    ("report.txt", text),
    ("report.md", to_markdown(table, shared, notes)),
    ("report.json", to_json(table, shared, notes)),
  ):
    writing.write_aside(str(folder / name), content)
  return text
