"""Colours, line styles and signs that readers can tell apart.

The colours are those of Okabe and Ito (2008), "Color Universal Design", which
people with any colour vision can tell apart, without black and yellow: these
cannot be seen on a dark or on a light page. Lines also differ in their style,
and points in their sign.
"""

from typing import Any, NamedTuple

COLORS = (
  "#0072b2",
  "#d55e00",
  "#009e73",
  "#cc79a7",
  "#e69f00",
  "#56b4e9",
  "#888888",
)
# Names of plotly, then of matplotlib.
_DASHES = (
  ("solid", "-"),
  ("dash", "--"),
  ("dot", ":"),
  ("dashdot", "-."),
)
_SIGNS = (
  ("circle", "o"),
  ("square", "s"),
  ("triangle-up", "^"),
  ("diamond", "D"),
  ("cross", "P"),
  ("x", "X"),
)


class Look(NamedTuple):
  """How a variant or a language is drawn.

  Attributes:
    color: "#rrggbb".
    dash: A line's style, for plotly and for matplotlib.
    sign: A point's sign, for plotly and for matplotlib.
  """

  color: str
  dash: tuple[str, Any]
  sign: tuple[str, Any]


def look(number: int) -> Look:
  """Returns the look of the n-th thing; the first 42 differ."""
  turn, color = divmod(number, len(COLORS))
  return Look(
    COLORS[color],
    _DASHES[(color + turn) % len(_DASHES)],
    _SIGNS[(color + turn) % len(_SIGNS)],
  )


def faded(color: str, opacity: float) -> str:
  """Returns "rgba(…)" of a colour "#rrggbb"."""
  red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
  return f"rgba({red},{green},{blue},{opacity})"
