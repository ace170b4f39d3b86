"""Asks whether a linear classifier can tell the language of a vector.

If it can, vectors keep the language in some direction. A retriever can then
prefer a language. If it is right as often as chance, no linear function of the
vectors knows the language.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

HELD_OUT = 0.25  # The share of meanings that the classifier does not see.
RIDGE = 1e-3  # The penalty, as a share of the mean variance of a dimension.
FEWEST = 5  # Texts of a language on each side of the split.


class Probe(NamedTuple):
  """The mean over languages of the accuracy, and what chance gives."""

  accuracy: float
  chance: float


def measure(
  vectors: np.ndarray, languages: Sequence[str], meanings: Sequence[str]
) -> Probe | None:
  """Fits a ridge classifier on a part of the meanings, and tests the others.

  It is the closed form of least squares on one-hot targets with a penalty
  (Hoerl and Kennard 1970). Each language has the same weight in the fit and in
  the accuracy, so chance is 1 / the number of languages. All texts of a meaning
  are on one side of the split; hashes of the meanings decide.

  Args:
    vectors: float [n, D].
    languages: The language of each vector.
    meanings: The meaning of each vector.

  Returns:
    None if fewer than two languages have `FEWEST` texts on each side.
  """
  held_out = np.array([_share(meaning) < HELD_OUT for meaning in meanings])
  names = np.array(languages)
  known = [
    name
    for name in sorted(set(languages))
    if min(
      (held_out & (names == name)).sum(), (~held_out & (names == name)).sum()
    )
    >= FEWEST
  ]
  if len(known) < 2:
    return None
  is_of = names[:, None] == np.array(known)  # [n, L]
  train = ~held_out & is_of.any(axis=1)
  weights = (is_of[train] / is_of[train].sum(axis=0)).sum(axis=1) / len(known)
  x = vectors[train].astype(np.float64)
  y = is_of[train].astype(np.float64)
  center, mean = weights @ x, weights @ y
  x, y = x - center, y - mean
  covariance = x.T @ (weights[:, None] * x)
  penalty = RIDGE * np.trace(covariance) / len(covariance)
  if not penalty:  # All vectors are equal.
    return Probe(1 / len(known), 1 / len(known))
  slopes = np.linalg.solve(
    covariance + penalty * np.eye(len(covariance)),
    x.T @ (weights[:, None] * y),
  )
  guessed = ((vectors - center) @ slopes + mean).argmax(axis=1)
  right = [
    np.mean(guessed[held_out & is_of[:, language]] == language)
    for language in range(len(known))
  ]
  return Probe(float(np.mean(right)), 1 / len(known))


def _share(meaning: str) -> float:
  """Returns a number from 0 to 1 that depends on a meaning's hash."""
  digest = hashlib.sha256(f"probe {meaning}".encode()).digest()
  return int.from_bytes(digest[:8], "big") / 2**64
