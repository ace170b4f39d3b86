"""Reads the tokens of a role, which are in a file for each shard."""

from collections.abc import Callable, Sequence

import numpy as np


def folder_name(shard: int) -> str:
  """Returns the name of a shard's folder in the store."""
  return f"{shard:05}"


class ShardedTokens:
  """The tokens of a role, as if the shards' arrays were one.

  A shard's file is opened when its first token is read.
  """

  def __init__(
    self, sizes: Sequence[int], open_shard: Callable[[int], np.ndarray]
  ):
    """Names the files.

    Args:
      sizes: The number of tokens of each shard.
      open_shard: Returns the tokens of a shard, int32 [size].
    """
    self._starts = np.cumsum([0, *sizes])
    self._open_shard = open_shard
    self._opened: dict[int, np.ndarray] = {}

  def __len__(self) -> int:
    return int(self._starts[-1])

  def shard(self, number: int) -> np.ndarray:
    """Returns the tokens of a shard, int32 [size]."""
    if number not in self._opened:
      self._opened[number] = self._open_shard(number)
    return self._opened[number]

  def take(self, starts: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the tokens of some texts.

    Args:
      starts: Where each text starts, int64 [...].
      mask: bool [..., length]; True for the tokens of the text.

    Returns:
      int32 [..., length]; 0 where the mask is False.
    """
    tokens = np.zeros(mask.shape, np.int32)
    shards = np.searchsorted(self._starts, starts, side="right") - 1
    places = np.arange(mask.shape[-1])
    for number in np.unique(shards[mask.any(axis=-1)]).tolist():
      here = shards == number
      inside = mask[here]
      local = (starts[here] - self._starts[number])[:, None] + places
      found = self.shard(number)[np.where(inside, local, 0)]
      tokens[here] = np.where(inside, found, 0)
    return tokens
