"""Draws the charts of the page with plotly, which the page embeds."""

import html
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from mlir_jax.evals import report
from mlir_jax.reporting import (
  column_files,
  curves,
  estimates,
  looks,
  scores,
  variants,
)

Figure = Mapping[str, Any]  # As plotly has it: {"data": …, "layout": …}.

# More points would make a map slow, and hide each other.
POINTS = 2000
GRAY = "#888888"  # The page's style sheet gives texts and grids their colours.


def layout(**changes: Any) -> dict[str, Any]:
  """Returns the layout that all charts share, with changes."""
  return {
    "template": "none",  # The default one has colours for a light page.
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": GRAY},
    # Dragging over a chart scrolls the page of a phone.
    "dragmode": False,
    "hoverlabel": {
      "bgcolor": "#222222",
      "bordercolor": "#222222",
      "font": {"color": "#ffffff", "size": 13},
      "align": "left",
    },
    "modebar": {
      "bgcolor": "rgba(0,0,0,0)",
      "color": GRAY,
      "activecolor": looks.COLORS[0],
    },
    "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
    **changes,
  }


def axis(**changes: Any) -> dict[str, Any]:
  """Returns an axis as all charts have it, with changes."""
  return {
    "automargin": True,
    "gridcolor": looks.faded(GRAY, 0.3),
    "zerolinecolor": looks.faded(GRAY, 0.5),
    **changes,
  }


def of_curves(panel: curves.Panel, found: Sequence[variants.Variant]) -> Figure:
  """Draws a metric over the steps: a line and a band for each variant."""
  data = []
  for curve in panel.curves:
    look = looks.look(curve.variant)
    name = html.escape(found[curve.variant].title)
    ends = [
      value.interval if value and value.interval else None
      for value in curve.values
    ]
    if any(ends):
      for bound in (0, 1):  # Plotly fills up to the trace before.
        data.append(
          {
            "type": "scatter",
            "x": list(curve.steps),
            "y": [end[bound] if end else None for end in ends],
            "mode": "lines",
            "line": {"width": 0},
            "hoverinfo": "skip",
            "showlegend": False,
            **(
              {"fill": "tonexty", "fillcolor": looks.faded(look.color, 0.2)}
              if bound
              else {}
            ),
          }
        )
    data.append(
      {
        "type": "scatter",
        "name": name,
        "x": list(curve.steps),
        "y": [value.value if value else None for value in curve.values],
        # A single point is no line.
        "mode": "lines" if len(curve.steps) > 2 else "lines+markers",
        "line": {"color": look.color, "dash": look.dash[0], "width": 2},
        "marker": {"symbol": look.sign[0], "size": 7},
        "hovertemplate": "step %{x:,}: %{y:.4~g}<extra>" + name + "</extra>",
      }
    )
  return {
    "data": data,
    "layout": layout(
      height=240,
      showlegend=False,
      xaxis=axis(fixedrange=True, nticks=5),
      yaxis=axis(fixedrange=True, nticks=5),
    ),
  }


def of_languages(
  found: Sequence[variants.Variant], collected: scores.Scores
) -> Figure:
  """Draws a bar per language and variant; a menu chooses the measure.

  A white sign says where the variant was before training.
  """
  places = _bar_places(collected)
  thickness = 0.8 / len(found)
  data, measure_of = [], []
  for measure in collected.measures:
    for number, variant in enumerate(found):
      offset = (number - (len(found) - 1) / 2) * thickness
      for trace in _bars(
        places, measure, number, variant, offset, 0.9 * thickness
      ):
        trace["visible"] = measure == collected.measures[0]
        data.append(trace)
        measure_of.append(measure)
  rows = len(places) * max(22, 13 * len(found))
  buttons = [
    {
      "label": report.title(measure),
      "method": "update",
      "args": [
        {"visible": [each == measure for each in measure_of]},
        {"xaxis.title.text": f"{report.title(measure)} × 100"},
      ],
    }
    for measure in collected.measures
  ]
  changed = layout(
    height=140 + rows,
    margin={"l": 8, "r": 8, "t": 56, "b": 8},
    showlegend=False,
    barmode="overlay",
    xaxis=axis(
      fixedrange=True,
      rangemode="tozero",
      title={"text": f"{report.title(collected.measures[0])} × 100"},
    ),
    yaxis=axis(
      fixedrange=True,
      showgrid=False,
      zeroline=False,
      range=[len(places) - 0.4, -0.6],
      tickmode="array",
      tickvals=[n for n, item in enumerate(places) if _is_line(item)],
      ticktext=[_tick(item) for item in places if _is_line(item)],
    ),
    annotations=[
      {
        "text": f"<b>{html.escape(item)}</b>",
        "x": 0,
        "xref": "paper",
        "xanchor": "left",
        "y": place,
        "showarrow": False,
      }
      for place, item in enumerate(places)
      if isinstance(item, str)
    ],
    updatemenus=[
      {
        "type": "dropdown",
        "buttons": buttons,
        "x": 0,
        "xanchor": "left",
        "y": 1,
        "yanchor": "bottom",
        "pad": {"b": 12},
        "bordercolor": GRAY,
      }
    ]
    if len(buttons) > 1
    else [],
  )
  return {"data": data, "layout": changed}


def _bar_places(collected: scores.Scores) -> list[str | scores.Line]:
  """Returns what is on the y axis: names of groups, and their lines."""
  places: list[str | scores.Line] = []
  group = None
  for line in collected.lines:
    if line.row.group != group:
      group = line.row.group
      places.append(group)
    places.append(line)
  return places


def _is_line(item: str | scores.Line) -> TypeGuard[scores.Line]:
  return not isinstance(item, str)


def _tick(line: scores.Line) -> str:
  label = html.escape(line.row.label)
  return f"<i>{label}</i>" if line.is_mean else label


def _bars(
  places: Sequence[str | scores.Line],
  measure: str,
  number: int,
  variant: variants.Variant,
  offset: float,
  thickness: float,
) -> list[dict[str, Any]]:
  """Returns the bars of a variant, and the signs for before training."""
  look = looks.look(number)
  name = html.escape(variant.title)
  traces = []
  for when in (scores.AFTER, scores.BEFORE):
    at = [
      (place, line, estimate)
      for place, line in enumerate(places)
      if _is_line(line) and (estimate := line.estimate(measure, when, number))
    ]
    if not at:
      continue
    trace = {
      "name": name,
      "x": [100 * estimate.value for *_, estimate in at],
      "y": [place + offset for place, *_ in at],
      "hovertext": [
        html.escape(f"{line.row.label}, {when}: {estimates.to_text(estimate)}")
        for _, line, estimate in at
      ],
      "hovertemplate": "%{hovertext}<extra>" + name + "</extra>",
    }
    if when == scores.BEFORE:
      trace |= {
        "type": "scatter",
        "mode": "markers",
        "marker": {
          "symbol": "diamond",
          "size": 8,
          "color": "#ffffff",
          "line": {"width": 2, "color": look.color},
        },
      }
    else:
      trace |= {
        "type": "bar",
        "orientation": "h",
        "width": thickness,
        "marker": {"color": looks.faded(look.color, 0.75)},
        "error_x": _error_bars([estimate for *_, estimate in at]),
      }
    traces.append(trace)
  return traces


def _error_bars(found: Sequence[estimates.Estimate]) -> dict[str, Any]:
  """Returns plotly's error bars; a value without an interval has none."""
  return {
    "type": "data",
    "symmetric": False,
    "array": [
      100 * (each.interval.high - each.value) if each.interval else None
      for each in found
    ],
    "arrayminus": [
      100 * (each.value - each.interval.low) if each.interval else None
      for each in found
    ],
    "color": GRAY,
    "thickness": 2,
    "width": 0,  # Ends would be drawn where there is no interval, too.
  }


def of_map(found: column_files.Map, languages: Sequence[str]) -> Figure:
  """Draws the vectors of texts; each language has its colour and sign.

  Args:
    found: The map. Of more than `POINTS` points, every n-th is drawn.
    languages: All languages of the page's maps, so that each looks the same in
      all of them.
  """
  every = -(-len(found.points) // POINTS) or 1
  points = found.points[::every]
  data = []
  for language in sorted({point.language for point in points}):
    look = looks.look(languages.index(language))
    own = [point for point in points if point.language == language]
    name = html.escape(language)
    data.append(
      {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [point.x for point in own],
        "y": [point.y for point in own],
        "hovertext": [_hover_text(point.text) for point in own],
        "hovertemplate": "%{hovertext}<extra>" + name + "</extra>",
        "marker": {
          "color": looks.faded(look.color, 0.8),
          "symbol": look.sign[0],
          "size": 7,
        },
      }
    )
  hidden = {"showticklabels": False, "zeroline": False, "title": None}
  return {
    "data": data,
    "layout": layout(
      height=440,
      xaxis=axis(**hidden),
      yaxis=axis(**hidden, scaleanchor="x"),
      legend={"orientation": "h", "y": -0.02, "yanchor": "top"},
    ),
  }


def _hover_text(text: str) -> str:
  """Returns a text in lines, as plotly shows it."""
  lines = textwrap.wrap(text, 40, max_lines=6, placeholder=" …")
  return "<br>".join(map(html.escape, lines))


def languages_of(maps: Sequence[column_files.Map]) -> list[str]:
  """Returns the languages of maps, sorted."""
  return sorted({point.language for each in maps for point in each.points})
