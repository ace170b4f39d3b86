"""Draws the scores of positives and negatives, before and after mining."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlir_jax.evals import plot
from mlir_jax.mining import statistics

_COLORS = {
  "positives": plot.GROUPS[0],
  "candidates": plot.FAINT,
  "negatives": plot.GROUPS[1],
}
_PANELS = {
  "before: all candidates": ("positives", "candidates"),
  "after: mined negatives": ("positives", "negatives"),
}


def draw(
  columns: Mapping[str, np.ndarray], label: str, path: str | os.PathLike
) -> None:
  """Writes the picture as PNG, whole or not at all.

  Args:
    columns: From `Statistics.columns`.
    label: What the scores are, for the axis.
    path: The file.
  """
  # Without pyplot, a figure needs no display and leaves no global state.
  from matplotlib import figure, layout_engine

  fig = figure.Figure(
    figsize=(7.2, 4.6),  # Inches.
    layout=layout_engine.ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08),
  )
  edges = statistics.bins(list(columns.values()))
  panels = fig.subplots(len(_PANELS), sharex=True)
  for axes, (title, names) in zip(panels, _PANELS.items(), strict=True):
    for name in names:
      _draw_scores(axes, name, columns[name], edges)
    axes.set_title(title, loc="left", fontsize=9.5, color=plot.INK)
    _style(axes)
  panels[-1].set_xlabel(label, color=plot.INK)
  plot.save(fig, path)


def _draw_scores(
  axes: Any, name: str, scores: np.ndarray, edges: np.ndarray
) -> None:
  """Draws the share of the scores that falls into each bin."""
  counts, _ = np.histogram(scores, edges)
  axes.stairs(
    counts / max(len(scores), 1),
    edges,
    fill=True,
    alpha=0.45,
    color=_COLORS[name],
    label=f"{name} ({len(scores):,})",
  )


def _style(axes: Any) -> None:
  axes.set_ylabel("share", color=plot.INK)
  axes.grid(axis="y", color=plot.GRID, linewidth=0.8)
  axes.set_axisbelow(True)
  for side in ("top", "right", "left"):
    axes.spines[side].set_visible(False)
  axes.spines["bottom"].set_color(plot.FAINT)
  axes.tick_params(axis="y", length=0)
  axes.tick_params(axis="x", color=plot.FAINT)
  axes.legend(frameon=False, fontsize=9)
