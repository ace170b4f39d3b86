"""The report's plot: each language's change, first column to last."""

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mlir_jax.evals import report
from mlir_jax.storage import writing

INK, FAINT, GRID = "#222222", "#9a9a9a", "#e6e6e6"
GROUPS = ("#0b5fa5", "#c8553d", "#2e8b57", "#7a4fa3", "#b8860b", "#444444")


class _Change(NamedTuple):
  """A row of the report as it is drawn."""

  row: report.Row
  before: float  # × 100.
  after: float  # × 100.
  place: float  # On the y axis.
  color: str

  @property
  def weight(self) -> str:
    return "bold" if self.row.label == "mean" else "normal"


class _Heading(NamedTuple):
  """A group's name above its rows."""

  group: str
  place: float  # On the y axis.
  color: str


def plot(
  columns: report.Columns,
  groups: Mapping[str, str],
  path: str | os.PathLike,
  measure: str = report.MAIN,
) -> bool:
  """Draws each language's change from the first column to the last, as PNG.

  Args:
    columns: As in `report.make_table`; only the first and the last are drawn.
    groups: As in `report.make_table`.
    path: The file; it is written whole or not at all.
    measure: The measure that is drawn.

  Returns:
    Whether a file was written. There is none if no language has a value of the
    measure in both columns.
  """
  names = list(columns)
  ends = {name: columns[name] for name in names[:1] + names[-1:]}
  changes, headings = _lay_out(ends, groups, measure)
  if not changes:
    return False
  # Without pyplot, a figure needs no display and leaves no global state.
  from matplotlib import figure, layout_engine

  height = changes[-1].place + 1
  # Sizes are in inches.
  fig = figure.Figure(
    figsize=(7.2, 1.3 + 0.27 * height),
    layout=layout_engine.ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08),
  )
  axes = fig.add_subplot()
  for change in changes:
    _draw_change(axes, change)
  for heading in headings:
    _write_heading(axes, heading)
  _label_axes(axes, changes, report.title(measure))
  _add_legend(fig, list(ends))
  save(fig, path)
  return True


def _lay_out(
  ends: report.Columns, groups: Mapping[str, str], measure: str
) -> tuple[list[_Change], list[_Heading]]:
  """Places rows from the top, with a heading above each group's first row."""
  if not any(ends.values()):
    return [], []
  changes, headings, colors = [], [], {}
  place = 0.0
  for row in report.make_table(ends, groups).rows:
    values = row.values.get(measure, (None,))
    before, after = values[0], values[-1]
    if row.split != "test" or before is None or after is None:
      continue
    if row.group not in colors:
      place += 0.7 if colors else 0.0
      colors[row.group] = GROUPS[len(colors) % len(GROUPS)]
      headings.append(_Heading(row.group, place, colors[row.group]))
      place += 1.0
    changes.append(
      _Change(row, 100 * before, 100 * after, place, colors[row.group])
    )
    place += 1.0
  return changes, headings


def _draw_change(axes: Any, change: _Change) -> None:
  """Draws a line from a hollow dot to a full dot, and writes the last value."""
  axes.plot(
    [change.before, change.after],
    [change.place, change.place],
    color=change.color,
    alpha=0.35,
    linewidth=2.5,
  )
  axes.plot(
    change.before, change.place, "o", c="white", mec=change.color, ms=6, mew=1.4
  )
  axes.plot(change.after, change.place, "o", c=change.color, ms=7)
  rises = change.after >= change.before
  axes.annotate(
    f"{change.after:.1f}",
    (change.after, change.place),
    xytext=(8 if rises else -8, 0),
    textcoords="offset points",
    ha="left" if rises else "right",
    va="center",
    fontsize=8.5,
    color=INK,
    fontweight=change.weight,
  )


def _write_heading(axes: Any, heading: _Heading) -> None:
  axes.annotate(
    heading.group,
    (0, heading.place),
    xycoords=("axes fraction", "data"),
    xytext=(6, 0),
    textcoords="offset points",
    va="center",
    fontsize=9.5,
    fontweight="bold",
    color=heading.color,
  )


def _label_axes(axes: Any, changes: Sequence[_Change], title: str) -> None:
  axes.set_yticks(
    [change.place for change in changes],
    [change.row.label for change in changes],
    color=INK,
  )
  for label, change in zip(axes.get_yticklabels(), changes, strict=True):
    label.set_fontweight(change.weight)
  right = max(max(change.before, change.after) for change in changes)
  axes.set_xlim(0, 1.1 * right if right else 1)
  axes.set_ylim(changes[-1].place + 0.7, -0.7)
  axes.set_xlabel(f"{title} × 100", color=INK)
  axes.tick_params(axis="y", length=0)
  axes.tick_params(axis="x", color=FAINT)
  axes.grid(axis="x", color=GRID, linewidth=0.8)
  axes.set_axisbelow(True)
  for side in ("top", "right", "left"):
    axes.spines[side].set_visible(False)
  axes.spines["bottom"].set_color(FAINT)


def _add_legend(fig: Any, names: Sequence[str]) -> None:
  """Explains the dots with the names of the columns."""
  from matplotlib import lines

  faces = ("white", INK)[-len(names) :]
  dots = [
    lines.Line2D(
      [], [], ls="", marker="o", c=INK, mfc=face, mew=1.4, label=name
    )
    for name, face in zip(names, faces, strict=True)
  ]
  fig.legend(
    handles=dots, loc="outside upper left", ncols=2, frameon=False, fontsize=9.5
  )


def save(fig: Any, path: str | os.PathLike) -> None:
  """Writes a figure to a file, whole or not at all."""
  image = io.BytesIO()
  fig.savefig(image, format="png", dpi=160)
  writing.write_aside(os.fspath(path), image.getvalue())
