"""The report's plot: each language's way from the first column to the last."""

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mlir_jax.evals import report
from mlir_jax.storage import writing

_INK, _FAINT, _GRID = "#222222", "#9a9a9a", "#e6e6e6"
_GROUPS = ("#0b5fa5", "#c8553d", "#2e8b57", "#7a4fa3", "#b8860b", "#444444")


class _Way(NamedTuple):
  """A row of the report with its two values, × 100, and where it is drawn."""

  row: report.Row
  before: float
  after: float
  place: float
  color: str

  @property
  def weight(self) -> str:
    return "bold" if self.row.label == "mean" else "normal"


class _Heading(NamedTuple):
  """A group's name above its rows."""

  group: str
  place: float
  color: str


def plot(
  columns: report.Columns,
  groups: Mapping[str, str],
  path: str | os.PathLike,
  measure: str = report.MAIN,
) -> bool:
  """Draws each language's way from the first column to the last, as PNG.

  Args:
    columns: As in `report.make_table`; those between the first and the last
      are left out.
    groups: As in `report.make_table`.
    path: The file, written whole or not at all.
    measure: The measure.

  Returns:
    Whether it was drawn: False, and no file, if no language has that measure
    in both columns.
  """
  names = list(columns)
  ends = {name: columns[name] for name in names[:1] + names[-1:]}
  ways, headings = _lay_out(ends, groups, measure)
  if not ways:
    return False
  # Figures without pyplot need no display and leave no global state.
  from matplotlib import figure, layout_engine

  height = ways[-1].place + 1
  # All in inches.
  fig = figure.Figure(
    figsize=(7.2, 1.3 + 0.27 * height),
    layout=layout_engine.ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08),
  )
  axes = fig.add_subplot()
  for way in ways:
    _draw_way(axes, way)
  for heading in headings:
    _write_heading(axes, heading)
  _label_axes(axes, ways, report.TITLES.get(measure, measure))
  _add_legend(fig, list(ends))
  _save(fig, path)
  return True


def _lay_out(
  ends: report.Columns, groups: Mapping[str, str], measure: str
) -> tuple[list[_Way], list[_Heading]]:
  """Places rows from the top, a heading above each group's first."""
  if not any(ends.values()):
    return [], []
  ways, headings, colors = [], [], {}
  place = 0.0
  for row in report.make_table(ends, groups).rows:
    values = row.values.get(measure, (None,))
    before, after = values[0], values[-1]
    if row.split != "test" or before is None or after is None:
      continue
    if row.group not in colors:
      place += 0.7 if colors else 0.0
      colors[row.group] = _GROUPS[len(colors) % len(_GROUPS)]
      headings.append(_Heading(row.group, place, colors[row.group]))
      place += 1.0
    ways.append(_Way(row, 100 * before, 100 * after, place, colors[row.group]))
    place += 1.0
  return ways, headings


def _draw_way(axes: Any, way: _Way) -> None:
  """A line from a hollow dot to a full one, with the last value beside it."""
  axes.plot(
    [way.before, way.after],
    [way.place, way.place],
    color=way.color,
    alpha=0.35,
    linewidth=2.5,
  )
  axes.plot(way.before, way.place, "o", c="white", mec=way.color, ms=6, mew=1.4)
  axes.plot(way.after, way.place, "o", c=way.color, ms=7)
  rises = way.after >= way.before
  axes.annotate(
    f"{way.after:.1f}",
    (way.after, way.place),
    xytext=(8 if rises else -8, 0),
    textcoords="offset points",
    ha="left" if rises else "right",
    va="center",
    fontsize=8.5,
    color=_INK,
    fontweight=way.weight,
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


def _label_axes(axes: Any, ways: Sequence[_Way], title: str) -> None:
  axes.set_yticks(
    [way.place for way in ways], [way.row.label for way in ways], color=_INK
  )
  for label, way in zip(axes.get_yticklabels(), ways, strict=True):
    label.set_fontweight(way.weight)
  right = max(max(way.before, way.after) for way in ways)
  axes.set_xlim(0, 1.1 * right if right else 1)
  axes.set_ylim(ways[-1].place + 0.7, -0.7)
  axes.set_xlabel(f"{title} × 100", color=_INK)
  axes.tick_params(axis="y", length=0)
  axes.tick_params(axis="x", color=_FAINT)
  axes.grid(axis="x", color=_GRID, linewidth=0.8)
  axes.set_axisbelow(True)
  for side in ("top", "right", "left"):
    axes.spines[side].set_visible(False)
  axes.spines["bottom"].set_color(_FAINT)


def _add_legend(fig: Any, names: Sequence[str]) -> None:
  """Says what the dots stand for: the columns' names, or the only one's."""
  from matplotlib import lines

  faces = ("white", _INK)[-len(names) :]
  dots = [
    lines.Line2D(
      [], [], ls="", marker="o", c=_INK, mfc=face, mew=1.4, label=name
    )
    for name, face in zip(names, faces, strict=True)
  ]
  fig.legend(
    handles=dots, loc="outside upper left", ncols=2, frameon=False, fontsize=9.5
  )


def _save(fig: Any, path: str | os.PathLike) -> None:
  """Writes a figure whole or not at all."""
  image = io.BytesIO()
  fig.savefig(image, format="png", dpi=160)
  writing.write_aside(os.fspath(path), image.getvalue())
