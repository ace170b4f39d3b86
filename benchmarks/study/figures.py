"""Draws the figures of docs/study.md from the results."""

import pathlib
from typing import Any

from mlir_jax.evals import plot
from study import cells as cells_lib
from study import tables

# Pairs are on a logarithmic axis, so no pairs are at this place.
_NO_PAIRS = 20
_MEASURES = {
  "pooled": "pooled mAP × 100",
  "rank_distance": "rank distance (lower is better)",
}
_GROUPS = {
  "de es ru zh": "questions in de, es, ru, zh: with pairs",
  "ar th vi": "questions in ar, th, vi: never with pairs",
}
# The second side is a little to the right, so that bars do not hide each other.
_STYLES = {
  "ours": {"linestyle": "-", "marker": "o", "shift": 1.0},
  "sentence-transformers": {"linestyle": ":", "marker": "s", "shift": 1.08},
}
_CENTIMETRES = 1 / 2.54


def headline(records: tables.Records, path: pathlib.Path) -> bool:
  """Draws pairs of each language against pooled mAP and rank distance.

  Args:
    records: The results.
    path: The file; it is written whole or not at all.

  Returns:
    Whether a file was written. There is none if fewer than two numbers of pairs
    have results.
  """
  drawn = [
    cell
    for of_side in cells_lib.HEADLINE.values()
    for cell in of_side.values()
    if records.get(cell)
  ]
  if len(drawn) < 2:
    return False
  fig, axes = _figure(len(_MEASURES))
  for place, (measure, title) in zip(axes, _MEASURES.items(), strict=True):
    for side, of_side in cells_lib.HEADLINE.items():
      for (group, label), color in zip(
        _GROUPS.items(), plot.GROUPS, strict=False
      ):
        _draw_line(
          place,
          records,
          of_side,
          f"{measure}/{group}",
          scale=1 if measure == "rank_distance" else 100,
          color=color,
          label=f"{side}; {label}",
          **_STYLES[side],
        )
    place.set_xscale("log")
    ticks = [_NO_PAIRS, 100, 1000, 6000]
    place.set_xticks(ticks, ["0", "100", "1,000", "6,000"], color=plot.INK)
    place.minorticks_off()
    place.set_xlabel("translated sentences of each language", color=plot.INK)
    place.set_ylabel(title, color=plot.INK)
    place.set_ylim(bottom=0)
    _tidy(place)
  handles, labels = axes[0].get_legend_handles_labels()
  fig.legend(
    handles,
    labels,
    loc="outside upper center",
    ncols=2,
    frameon=False,
    fontsize=8.5,
  )
  plot.save(fig, path)
  return True


def frontier(records: tables.Records, path: pathlib.Path) -> bool:
  """Draws mono against pooled mAP: a point for each cell of the small start.

  Args:
    records: The results.
    path: The file; it is written whole or not at all.

  Returns:
    Whether a file was written. There is none if fewer than two cells have
    results.
  """
  points = []
  for cell in cells_lib.CELLS:
    if cell.start != "small":
      continue
    mono = tables.estimate(records.get(cell.name, ()), "mono")
    pooled = tables.estimate(records.get(cell.name, ()), "pooled")
    if mono and pooled:
      points.append((cell, 100 * mono.value, 100 * pooled.value))
  if len(points) < 2:
    return False
  fig, (place,) = _figure(1)
  for side, marker, color in (
    ("ours", "o", plot.GROUPS[0]),
    ("others", "s", plot.GROUPS[1]),
  ):
    of_side = [p for p in points if bool(p[0].recipe) == (side == "others")]
    place.plot(
      [mono for _, mono, _ in of_side],
      [pooled for *_, pooled in of_side],
      marker,
      ms=5,
      c=color,
      label=side,
    )
  for cell, mono, pooled in points:
    place.annotate(
      cell.name,
      (mono, pooled),
      xytext=(5, 0),
      textcoords="offset points",
      va="center",
      fontsize=7,
      color=plot.INK,
    )
  fig.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=8.5)
  place.set_xlabel("mono mAP × 100", color=plot.INK)
  place.set_ylabel("pooled mAP × 100", color=plot.INK)
  place.margins(x=0.15)
  _tidy(place)
  plot.save(fig, path)
  return True


def _figure(columns: int) -> tuple[Any, Any]:
  """Returns a figure and its axes, without pyplot's global state."""
  from matplotlib import figure, layout_engine

  fig = figure.Figure(
    figsize=(24 * _CENTIMETRES, 12 * _CENTIMETRES),
    layout=layout_engine.ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08),
  )
  return fig, fig.subplots(1, columns, squeeze=False)[0]


def _draw_line(axes, records, of_side, name, scale, label, shift, **style):
  """Draws the means with their intervals, a point for each number of pairs."""
  xs, ys, errors = [], [], []
  for pairs, cell in of_side.items():
    found = tables.estimate(records.get(cell, ()), name)
    if found is None:
      continue
    xs.append(shift * (pairs or _NO_PAIRS))
    ys.append(scale * found.value)
    interval = found.interval
    errors.append(scale * (interval.high - interval.low) / 2 if interval else 0)
  if xs:
    axes.errorbar(xs, ys, errors, ms=5, capsize=2, label=label, **style)


def _tidy(axes):
  axes.grid(color=plot.GRID, linewidth=0.8)
  axes.set_axisbelow(True)
  for side in ("top", "right"):
    axes.spines[side].set_visible(False)
