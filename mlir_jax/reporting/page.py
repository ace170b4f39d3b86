"""Makes the report as one page of HTML that needs no network."""

import base64
import hashlib
import importlib.util
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from mlir_jax.reporting import (
  charts,
  curves,
  diagnostic_charts,
  diagnostics,
  looks,
)
from mlir_jax.reporting import content as content_lib

NEEDED = ("jinja2", "plotly")
# A longer text of a passage is cut; a click shows the rest.
CHARACTERS = 300

_FOLDER = pathlib.Path(__file__).parent
_CONFIG = {"displaylogo": False, "responsive": True, "displayModeBar": False}
# Only a map is enlarged and moved.
_MAP_CONFIG = {
  "displaylogo": False,
  "responsive": True,
  "modeBarButtons": [
    ["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]
  ],
}


def require() -> None:
  """Raises ImportError if a library of the page is not installed."""
  missing = [n for n in NEEDED if not importlib.util.find_spec(n)]
  if missing:
    raise ImportError(
      f"{' and '.join(missing)} is not installed; the report needs it:"
      ' pip install "mlir_jax[report]".'
    )


def make(content: content_lib.Content) -> str:
  """Makes the page; the same content gives the same page."""
  import jinja2

  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  drawing = _Drawing()
  drawn = _draw(content, drawing)
  return environment.get_template("page.html").render(
    content=content,
    colors=[looks.look(n).color for n in range(len(content.variants))],
    characters=CHARACTERS,
    curve_points=curves.POINTS,
    map_points=charts.POINTS,
    style=(_FOLDER / "page.css").read_text("utf-8"),
    library=drawing.library(),
    policy=drawing.policy(),
    **drawn,
  )


def _draw(content: content_lib.Content, drawing: "_Drawing") -> dict[str, Any]:
  """Draws all charts, under the names that the template has for them."""
  found = content.variants
  languages = charts.languages_of([each.map for each in content.maps])
  return {
    "panels": [
      (panel.metric, drawing.draw(charts.of_curves(panel, found), panel.metric))
      for panel in content.panels
    ],
    "bars": drawing.draw(
      charts.of_languages(found, content.scores), "Measures by language"
    )
    if content.scores
    else None,
    "matrices": [
      (
        name,
        each.model.name,
        drawing.draw(
          diagnostic_charts.of_matrix(each, diagnostics.ends_of(matrices)),
          f"{name}, {each.model.name}",
        ),
      )
      for name, matrices in content.sorted.matrices.items()
      for each in matrices
    ],
    "distributions": [
      *(
        (name, drawing.draw(diagnostic_charts.of_distributions(values), name))
        for name, values in content.sorted.distributions.items()
      ),
      *(
        (name, drawing.draw(diagnostic_charts.of_samples(values), name))
        for name, values in content.sorted.samples.items()
      ),
    ],
    "maps": [
      (
        each,
        drawing.draw(
          charts.of_map(each.map, languages),
          f"Map of vectors, {each.model}",
          _MAP_CONFIG,
        ),
      )
      for each in content.maps
    ],
  }


class _Drawing:
  """Makes charts into HTML, and knows the scripts that may run."""

  def __init__(self):
    self._charts = 0
    self._scripts: list[str] = []

  def draw(
    self,
    figure: charts.Figure,
    label: str,
    config: Mapping[str, Any] | None = None,
  ) -> Any:
    """Returns a chart as HTML that is not escaped again."""
    import markupsafe
    import plotly.io

    self._charts += 1
    chart = plotly.io.to_html(
      figure,
      config=dict(config or _CONFIG),
      include_plotlyjs=False,
      full_html=False,
      div_id=f"chart-{self._charts}",
      default_height=f"{figure['layout']['height']}px",
    )
    # Plotly escapes each "<" in the data.
    self._scripts += re.findall("<script[^>]*>(.*?)</script>", chart, re.DOTALL)
    before = markupsafe.Markup('<div role="img" aria-label="{}">').format(label)
    return before + markupsafe.Markup(f"{chart}</div>")

  def library(self) -> Any:
    """Returns plotly's own script; nothing if there are no charts."""
    import markupsafe
    import plotly.offline

    if not self._charts:
      return ""
    scripts = (
      "window.PlotlyConfig = {MathJaxConfig: 'local'};",
      plotly.offline.get_plotlyjs(),
    )
    self._scripts += scripts
    return markupsafe.Markup(
      "\n".join(f"<script>{script}</script>" for script in scripts)
    )

  def policy(self) -> str:
    """Returns what a browser may load: nothing but the scripts of the page."""
    hashes = sorted({_hash(script) for script in self._scripts})
    return (
      "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:;"
      f" script-src {' '.join(hashes) or repr('none')}"
    )


def _hash(script: str) -> str:
  """Returns how a policy names a script that may run."""
  digest = hashlib.sha256(script.encode()).digest()
  return f"'sha256-{base64.b64encode(digest).decode()}'"
