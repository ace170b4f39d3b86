"""Draws the charts of diagnostics with plotly."""

import html
import itertools
from collections.abc import Sequence

from mlir_jax.reporting import charts, diagnostics, looks


def of_matrix(
  found: diagnostics.Matrix, ends: tuple[float, float]
) -> charts.Figure:
  """Draws a value for each pair of languages as a colour.

  Args:
    found: The values.
    ends: The least and the greatest value of the colours.
  """
  languages = list(map(html.escape, found.languages))
  return {
    "data": [
      {
        "type": "heatmap",
        "x": languages,
        "y": languages,
        "z": [list(row) for row in found.values],
        "zmin": ends[0],
        "zmax": ends[1],
        "colorscale": "Cividis",
        "colorbar": {"thickness": 12, "outlinewidth": 0},
        "hovertemplate": "%{y}, %{x}: %{z:.3f}<extra></extra>",
        "texttemplate": "%{z:.2f}" if len(languages) <= 8 else "",
      }
    ],
    "layout": charts.layout(
      height=120 + max(200, 24 * len(languages)),
      xaxis=charts.axis(fixedrange=True, showgrid=False, type="category"),
      yaxis=charts.axis(
        fixedrange=True, showgrid=False, type="category", autorange="reversed"
      ),
    ),
  }


def of_distributions(
  found: Sequence[diagnostics.Distribution],
) -> charts.Figure:
  """Draws how often values occur in each model: a line over the bins."""
  low, high = diagnostics.range_of(found)
  data = []
  for each in found:
    name = html.escape(each.model.name)
    data.append(
      {
        "type": "scatter",
        "name": name,
        "x": [
          (first + second) / 2
          for first, second in itertools.pairwise(each.edges)
        ],
        "y": list(each.shares),
        "mode": "lines",
        "line": {
          "color": looks.look(each.model.variant).color,
          "dash": "dot" if each.model.before else "solid",
          "shape": "hvh",
          "width": 2,
        },
        "hovertemplate": "%{x:.3g}: %{y:.1%}<extra>" + name + "</extra>",
      }
    )
  return {
    "data": data,
    "layout": charts.layout(
      height=300 + 20 * len(data),
      xaxis=charts.axis(fixedrange=True, range=[low, high]),
      yaxis=charts.axis(fixedrange=True, rangemode="tozero", tickformat=".0%"),
      legend={"orientation": "h", "y": -0.12, "yanchor": "top"},
      showlegend=True,
    ),
  }


def of_samples(found: Sequence[diagnostics.Samples]) -> charts.Figure:
  """Draws the values of a diagnostic in each model, as a violin."""
  data = []
  for each in reversed(found):
    color = looks.look(each.model.variant).color
    data.append(
      {
        "type": "violin",
        "orientation": "h",
        "name": html.escape(each.model.name),
        "x": list(each.values),
        "line": {"color": color},
        "fillcolor": looks.faded(color, 0.1 if each.model.before else 0.4),
        "box": {"visible": True},
        "points": False,
        "hoverinfo": "name",
      }
    )
  return {
    "data": data,
    "layout": charts.layout(
      height=80 + 60 * len(data),
      showlegend=False,
      xaxis=charts.axis(fixedrange=True),
      yaxis=charts.axis(fixedrange=True, showgrid=False),
    ),
  }
