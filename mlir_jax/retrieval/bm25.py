"""Ranks passages by BM25, with the library bm25s.

The scores are those of Lucene (Kamphuis et al., ECIR 2020) with k1 = 1.5 and
b = 0.75. A passage without a term of the question has the score 0.
"""

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np

from mlir_jax.retrieval import terms


def _import() -> Any:
  """Returns the module bm25s.

  Its import starts JAX's backend, and then several processes cannot join. So it
  is imported only where passages are indexed.
  """
  import bm25s

  # Its logger shows debug messages, whatever the program's level is.
  logging.getLogger("bm25s").setLevel(logging.WARNING)
  return bm25s


class Bm25:
  """An index of passages in memory."""

  def __init__(self, texts: Iterable[str], analyze: terms.Analyzer):
    """Counts the terms of all passages.

    Args:
      texts: The passages.
      analyze: Returns the terms of a text.

    Raises:
      ValueError: if no passage has a term.
    """
    self._analyze = analyze
    self._numbers: dict[str, int] = {}
    numbers = self._numbers
    passages = [
      [numbers.setdefault(term, len(numbers)) for term in analyze(text)]
      for text in texts
    ]
    if not numbers:
      raise ValueError(
        "BM25 finds nothing: the passages hold no letter and no digit."
      )
    self._index = _import().BM25(k1=1.5, b=0.75, method="lucene")
    self._index.index(
      (passages, numbers), create_empty_token=False, show_progress=False
    )

  def scores(self, text: str) -> np.ndarray:
    """Returns the score of each passage for a question, float32 [N]."""
    numbers = [
      self._numbers[term]
      for term in self._analyze(text)
      if term in self._numbers
    ]
    return self._index.get_scores_from_ids(numbers)


def best(scores: np.ndarray, k: int) -> np.ndarray:
  """Returns the rows of the k highest scores above 0, int64 [at most k].

  Of equal scores, the lower row comes first, also at the cut after k.

  Args:
    scores: float32 [N].
    k: The number of rows, at least 1.
  """
  k = min(k, len(scores))
  last = np.partition(scores, len(scores) - k)[len(scores) - k]
  # Many passages may share a low score, so only the rows above 0 are sorted.
  rows = np.flatnonzero((scores >= last) & (scores > 0))
  return rows[np.argsort(-scores[rows], kind="stable")][:k]
