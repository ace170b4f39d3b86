"""Reads rows of vectors that are in several arrays, as float32."""

from collections.abc import Callable, Sequence

import numpy as np


class VectorRows:
  """Arrays of vectors as one: `topk.place` takes its rows.

  An array may be memory-mapped. It is opened when one of its rows is read.
  """

  def __init__(
    self,
    blocks: Sequence[np.ndarray],
    counts: Sequence[int],
    width: int,
    *,
    unit_length: bool = False,
    name: Callable[[int], str] = "row {}".format,
  ):
    """Takes the arrays.

    Args:
      blocks: [n, D] floats each.
      counts: n of each array.
      width: D.
      unit_length: Whether rows are scaled to length 1.
      name: Names a row in messages.
    """
    self._blocks = blocks
    self._ends = np.cumsum(np.asarray(counts, np.int64))
    self._starts = self._ends - np.asarray(counts, np.int64)
    self._width = width
    self._unit_length = unit_length
    self._name = name

  @property
  def shape(self) -> tuple[int, int]:
    """(N, D)."""
    return (int(self._ends[-1]) if len(self._ends) else 0, self._width)

  def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
    """Returns rows.

    Args:
      rows: A slice without a step, or int [n].

    Returns:
      float32 [n, D], a copy.

    Raises:
      ValueError: if a row is not finite; it names the row.
    """
    if isinstance(rows, slice):
      rows = np.arange(*rows.indices(self.shape[0]))
    found = np.empty((len(rows), self._width), np.float32)
    # A disk reads ascending rows fastest.
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    first = 0
    while first < len(rows):
      block = int(np.searchsorted(self._ends, ascending[first], "right"))
      last = int(np.searchsorted(ascending, self._ends[block]))
      local = ascending[first:last] - self._starts[block]
      values = self._blocks[block]
      found[order[first:last]] = values[local]
      first = last
    self._check(found, rows)
    if self._unit_length:
      found /= _lengths(found)
    return found

  def _check(self, found: np.ndarray, rows: np.ndarray) -> None:
    finite = np.isfinite(found).all(axis=1)
    if not finite.all():
      row = int(rows[~finite].min())
      raise ValueError(
        f"The embedding of {self._name(row)} is not finite: the model's"
        " parameters are broken, or the file is damaged."
      )


def _lengths(vectors: np.ndarray) -> np.ndarray:
  lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
  # The vector of a text without tokens is 0, and stays so.
  return np.where(lengths > 0, lengths, 1)


def unit_length(vectors: np.ndarray) -> np.ndarray:
  """Returns [n, D] vectors scaled to length 1, so that products are cosines."""
  return vectors / _lengths(vectors)
