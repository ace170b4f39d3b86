"""Makes a map of embeddings: points in a plane, with language and text.

The plane is that of the two main axes of the vectors (principal component
analysis). If languages are apart on the map, the language is among what the
vectors differ in most.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

MOST = 100  # Points of a language.
_CHARACTERS = 200  # Of a text.


def make(
  vectors: np.ndarray,
  languages: Sequence[str],
  texts: Sequence[str],
  most: int = MOST,
) -> dict[str, Any]:
  """Returns the map of vectors.

  Args:
    vectors: float [n, D]. All of them set the axes.
    languages: The language of each vector.
    texts: The text of each vector.
    most: Points that are shown of a language; the first ones.

  Returns:
    {"points": [{"language", "x", "y", "text"}, …], "method": a sentence}. The
    mean of all vectors is at (0, 0). The sign of an axis is that of the
    dimension that it weighs most.
  """
  centered = vectors.astype(np.float64)
  centered = centered - centered.mean(axis=0)
  variances, axes = np.linalg.eigh(centered.T @ centered)
  total = variances.sum()
  variances, axes = variances[::-1][:2], axes[:, ::-1][:, :2]
  largest = np.abs(axes).argmax(axis=0)
  axes = axes * np.sign(axes[largest, np.arange(axes.shape[1])])
  if axes.shape[1] < 2:
    axes = np.pad(axes, ((0, 0), (0, 2 - axes.shape[1])))
  places = centered @ axes
  points, counts = [], {}
  for language, text, (x, y) in zip(languages, texts, places, strict=True):
    counts[language] = counts.get(language, 0) + 1
    if counts[language] <= most:
      points.append(
        {
          "language": language,
          "x": float(x),
          "y": float(y),
          "text": text[:_CHARACTERS],
        }
      )
  share = float(variances.sum() / total) if total > 0 else 0.0
  return {
    "points": points,
    "method": (
      f"Principal components of {len(vectors):,} vectors; the two axes hold"
      f" {share:.1%} of their variance."
    ),
  }
