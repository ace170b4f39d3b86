"""Draws the charts of the paper with matplotlib."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from mlir_jax.evals import plot, report
from mlir_jax.reporting import (
  charts,
  curves,
  diagnostics,
  explanations,
  looks,
  scores,
  variants,
)

_ACROSS = 3  # Panels of curves in a row.


class Figure(NamedTuple):
  """A figure of matplotlib, with its file's name and what it shows."""

  name: str
  caption: str
  drawn: Any


def _file_name(text: str) -> str:
  """Returns a text as a part of a file's name, "mrr-100" of "mrr@100"."""
  return "-".join(re.findall("[a-z0-9]+", text.lower()))


def _figure(width: float, height: float) -> Any:
  """Makes a figure of this size, in inches."""
  # Without pyplot, a figure needs no display and leaves no global state.
  from matplotlib import figure, layout_engine

  return figure.Figure(
    figsize=(width, height),
    layout=layout_engine.ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08),
  )


def _clean(axes: Any) -> None:
  """Leaves a light grid and two axes."""
  axes.grid(color=plot.GRID, linewidth=0.8)
  axes.set_axisbelow(True)
  axes.tick_params(color=plot.FAINT, labelcolor=plot.INK, labelsize=8)
  for side in ("top", "right"):
    axes.spines[side].set_visible(False)
  for side in ("left", "bottom"):
    axes.spines[side].set_color(plot.FAINT)


def _add_legend(fig: Any, handles: Sequence[Any]) -> None:
  fig.legend(
    handles=handles,
    loc="outside upper left",
    ncols=min(len(handles), 4),
    frameon=False,
    fontsize=9,
  )


def of_curves(
  panels: Sequence[curves.Panel], found: Sequence[variants.Variant]
) -> Figure:
  """Draws a metric over the steps in each panel."""
  from matplotlib import lines

  across = min(_ACROSS, len(panels))
  down = -(-len(panels) // across)
  fig = _figure(2.6 * across + 0.4, 2.0 * down + 0.5)
  grid = fig.subplots(down, across, squeeze=False)
  for axes in grid.flat[len(panels) :]:
    axes.set_visible(False)
  for axes, panel in zip(grid.flat, panels, strict=False):
    for curve in panel.curves:
      look = looks.look(curve.variant)
      values = [v.value if v else float("nan") for v in curve.values]
      axes.plot(
        curve.steps,
        values,
        color=look.color,
        linestyle=look.dash[1],
        linewidth=1.6,
        marker=look.sign[1] if len(curve.steps) < 3 else None,
        markersize=4,
      )
      if any(v and v.interval for v in curve.values):
        missing = (float("nan"), float("nan"))
        ends = [v.interval or missing if v else missing for v in curve.values]
        axes.fill_between(
          curve.steps,
          *zip(*ends, strict=True),
          color=look.color,
          alpha=0.2,
          lw=0,
        )
    axes.set_title(panel.metric, fontsize=9, color=plot.INK)
    _clean(axes)
  for axes in grid[-1]:
    axes.set_xlabel("step", fontsize=9, color=plot.INK)
  _add_legend(
    fig,
    [
      lines.Line2D(
        [],
        [],
        color=looks.look(number).color,
        linestyle=looks.look(number).dash[1],
        label=variant.title,
      )
      for number, variant in enumerate(found)
    ],
  )
  return Figure("curves.png", "Learning curves", fig)


def of_languages(
  found: Sequence[variants.Variant], collected: scores.Scores, measure: str
) -> Figure:
  """Draws a bar per language and variant, with its interval."""
  from matplotlib import lines, patches

  places, group = [], None
  for line in collected.with_measure(measure):
    if line.row.group != group:
      group = line.row.group
      places.append(group)
    places.append(line)
  thickness = 0.8 / len(found)
  fig = _figure(7.2, 0.8 + len(places) * max(0.2, 0.13 * len(found)))
  axes = fig.add_subplot()
  has_before = False
  for number in range(len(found)):
    color = looks.look(number).color
    offset = (number - (len(found) - 1) / 2) * thickness
    for place, line in enumerate(places):
      if isinstance(line, str):
        continue
      if after := line.estimate(measure, scores.AFTER, number):
        low, high = after.interval or (after.value, after.value)
        axes.barh(
          place + offset,
          100 * after.value,
          0.9 * thickness,
          color=color,
          alpha=0.8,
        )
        if after.interval:
          axes.plot(
            [100 * low, 100 * high],
            [place + offset] * 2,
            color=plot.INK,
            linewidth=1,
          )
      if before := line.estimate(measure, scores.BEFORE, number):
        has_before = True
        axes.plot(
          100 * before.value,
          place + offset,
          "D",
          mfc="white",
          mec=color,
          ms=3.5,
        )
  labels = [p if isinstance(p, str) else p.row.label for p in places]
  axes.set_yticks(range(len(places)), labels)
  _clean(axes)
  axes.tick_params(axis="y", length=0)
  axes.grid(visible=False, axis="y")
  for label, place in zip(axes.get_yticklabels(), places, strict=True):
    if isinstance(place, str):
      label.set_fontweight("bold")
    elif place.is_mean:
      label.set_fontstyle("italic")
  axes.set_ylim(len(places) - 0.4, -0.6)
  axes.set_xlabel(f"{report.title(measure)} × 100", color=plot.INK)
  handles: list[Any] = [
    patches.Patch(color=looks.look(n).color, alpha=0.8, label=variant.title)
    for n, variant in enumerate(found)
  ]
  if has_before:
    handles.append(
      lines.Line2D(
        [], [], ls="", marker="D", mfc="white", mec=plot.INK, label="before"
      )
    )
  _add_legend(fig, handles)
  return Figure(
    f"languages-{_file_name(measure)}.png",
    f"{report.title(measure)} by language",
    fig,
  )


def of_distributions(
  name: str, found: Sequence[diagnostics.Distribution]
) -> Figure:
  """Draws how often values occur in each model: a line over the bins."""
  fig = _figure(7.2, 3.2)
  axes = fig.add_subplot()
  for each in found:
    axes.stairs(
      [100 * share for share in each.shares],
      each.edges,
      color=looks.look(each.model.variant).color,
      linestyle=":" if each.model.before else "-",
      linewidth=1.6,
      label=each.model.name,
    )
  axes.set_xlim(*diagnostics.range_of(found))
  axes.set_ylim(bottom=0)
  axes.set_xlabel(name, color=plot.INK)
  axes.set_ylabel("% of values", color=plot.INK)
  axes.legend(frameon=False, fontsize=8)
  _clean(axes)
  return Figure(f"diagnostic-{_file_name(name)}.png", name, fig)


def of_samples(name: str, found: Sequence[diagnostics.Samples]) -> Figure:
  """Draws the values of a diagnostic in each model, as a violin."""
  fig = _figure(7.2, 0.8 + 0.5 * len(found))
  axes = fig.add_subplot()
  drawn = axes.violinplot(
    [list(each.values) for each in found],
    positions=range(len(found)),
    orientation="horizontal",
    showmedians=True,
    showextrema=False,
    widths=0.8,
  )
  for body, each in zip(drawn["bodies"], found, strict=True):
    body.set_color(looks.look(each.model.variant).color)
    body.set_alpha(0.25 if each.model.before else 0.6)
  drawn["cmedians"].set_color(plot.INK)
  axes.set_yticks(range(len(found)), [each.model.name for each in found])
  axes.invert_yaxis()
  axes.set_xlabel(name, color=plot.INK)
  _clean(axes)
  return Figure(f"diagnostic-{_file_name(name)}.png", name, fig)


def of_matrices(name: str, found: Sequence[diagnostics.Matrix]) -> Figure:
  """Draws a value for each pair of languages as a colour, for each model."""
  across = min(2, len(found))
  down = -(-len(found) // across)
  fig = _figure(3.6 * across, 3.2 * down)
  grid = fig.subplots(down, across, squeeze=False)
  low, high = diagnostics.ends_of(found)
  for axes in grid.flat[len(found) :]:
    axes.set_visible(False)
  image = None
  for axes, each in zip(grid.flat, found, strict=False):
    values = [
      [float("nan") if value is None else value for value in row]
      for row in each.values
    ]
    image = axes.imshow(values, cmap="cividis", vmin=low, vmax=high)
    ticks = range(len(each.languages))
    axes.set_xticks(ticks, each.languages, fontsize=7, rotation=90)
    axes.set_yticks(ticks, each.languages, fontsize=7)
    axes.set_title(each.model.name, fontsize=9, color=plot.INK)
  fig.colorbar(image, ax=grid, shrink=0.6)
  return Figure(f"diagnostic-{_file_name(name)}.png", name, fig)


def of_maps(maps: Sequence[explanations.NamedMap]) -> Figure:
  """Draws the maps next to each other, with one legend of the languages."""
  from matplotlib import lines

  languages = charts.languages_of([each for _, each in maps])
  across = min(2, len(maps))
  down = -(-len(maps) // across)
  fig = _figure(3.6 * across, 3.4 * down + 0.2 * (-(-len(languages) // 10)))
  grid = fig.subplots(down, across, squeeze=False)
  for axes in grid.flat[len(maps) :]:
    axes.set_visible(False)
  for axes, (name, each) in zip(grid.flat, maps, strict=False):
    for number, language in enumerate(languages):
      own = [point for point in each.points if point.language == language]
      axes.plot(
        [point.x for point in own],
        [point.y for point in own],
        looks.look(number).sign[1],
        color=looks.look(number).color,
        alpha=0.7,
        ms=3.5,
        mew=0,
      )
    axes.set_title(name, fontsize=9, color=plot.INK)
    axes.set_aspect("equal", "datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
      spine.set_color(plot.GRID)
  fig.legend(
    handles=[
      lines.Line2D(
        [],
        [],
        ls="",
        marker=looks.look(number).sign[1],
        color=looks.look(number).color,
        label=language,
      )
      for number, language in enumerate(languages)
    ],
    loc="outside lower center",
    ncols=10,
    frameon=False,
    fontsize=8,
    handletextpad=0.1,
    columnspacing=0.8,
  )
  return Figure("map.png", "Map of vectors by language", fig)
