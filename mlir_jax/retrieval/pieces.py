"""Cuts passages into pieces that the devices can hold.

If the devices cannot hold all of them, some pieces stay on the disk. A search
reads these one after the other. While a piece is searched, the next one is
read.
"""

import collections
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from mlir_jax import sharding
from mlir_jax.retrieval import topk

# Bytes of a device that the passages of a piece take, at most.
PIECE_BYTES = 1 << 29


class Piece(NamedTuple):
  """Passages that are on the devices together.

  Attributes:
    ranks: int64 [n], their places among all ids, ascending.
    rows: int64 [n], their rows in the files, in this order.
  """

  ranks: np.ndarray
  rows: np.ndarray

  def ranks_of(self, places: np.ndarray, none: int) -> np.ndarray:
    """Returns the ranks of places in the piece; `none` for the place -1."""
    return np.where(places < 0, none, self.ranks[places])


class Pieces:
  """All passages in pieces, of which the first ones stay on the devices."""

  def __init__(
    self,
    order: np.ndarray,
    place: Callable[[np.ndarray], Any],
    row_bytes: int,
    mesh: Mesh,
    memory: int,
    *,
    stay: bool = True,
  ):
    """Cuts the passages, and places what the devices can hold.

    If all passages fit, they are one piece. Otherwise a piece has consecutive
    rows of the files, and two pieces of the memory are for those that come and
    go.

    Args:
      order: int64 [N], the rows in the order of their ranks.
      place: Puts the passages of some rows on the mesh.
      row_bytes: Bytes of a passage on a device.
      mesh: The mesh.
      memory: Bytes that the passages may take on each device.
      stay: Whether passages stay on the devices; else each search reads all of
        them.

    Raises:
      ValueError: if a device cannot hold enough pieces of the smallest size.
    """
    self._place = place
    devices = mesh.shape[sharding.DATA]
    unit = topk.BLOCK * row_bytes  # Bytes that a device has at least.
    self._total = count = len(order)
    if stay and -(-count // (topk.BLOCK * devices)) * unit <= memory:
      self._pieces, held = [Piece(np.arange(count), order)], 1
    else:
      units = min(memory // (4 if stay else 2), PIECE_BYTES) // unit
      if units < 1:
        raise ValueError(
          f"{memory:,} bytes of memory for the passages on each device are not"
          f" enough; give at least {(4 if stay else 2) * unit:,}."
        )
      size = units * topk.BLOCK * devices
      ranks = np.empty_like(order)
      ranks[order] = np.arange(count)
      self._pieces = []
      for first in range(0, count, size):
        of_piece = np.sort(ranks[first : first + size])
        self._pieces.append(Piece(of_piece, order[of_piece]))
      held = memory // (units * unit) - 2 if stay else 0
    self._placed = [place(piece.rows) for piece in self._pieces[:held]]

  @property
  def held(self) -> float:
    """The share of the passages that stay on the devices."""
    rows = sum(len(piece.rows) for piece in self._pieces[: len(self._placed)])
    return rows / self._total

  def go_through(self) -> Iterator[tuple[Piece, Any]]:
    """Yields each piece and what `place` returned for it.

    The caller deletes the latter before it asks for the next one. So there are
    at most two pieces on the devices that do not stay there.
    """
    coming = collections.deque(self._pieces[len(self._placed) :])
    with futures.ThreadPoolExecutor(1, "read") as pool:

      def start():
        if not coming:
          return None
        piece = coming.popleft()
        return piece, pool.submit(self._place, piece.rows)

      following = start()
      yield from zip(self._pieces, self._placed, strict=False)
      while following:
        piece, future = following
        placed = future.result()
        del future  # It holds the vectors, too.
        following = start()
        yield piece, placed
        del placed
