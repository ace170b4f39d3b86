"""Packing: which texts share a row, so that little of it is padding.

Rows come in blocks: so many rows of one length. Texts are packed first fit
decreasing: each row takes the longest text that is left and still fits, again
and again. The result is a pure function of the lengths, so all hosts agree.
"""

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Block(NamedTuple):
  """Rows of one length.

  Attributes:
    rows: How many.
    length: Tokens of a row.
    texts: The most texts in a row.
    targets: The most hidden tokens in a row, for masked language modelling.
  """

  rows: int
  length: int
  texts: int
  targets: int = 0


class Packed(NamedTuple):
  """Where the texts of a step are; T texts.

  Attributes:
    numbers: For each block int32 [rows, texts]: which text is there; -1 none.
    slot: int32 [T], each text's place in `numbers`, flat and one block after
      the other. The number of all places for a text without tokens.
  """

  numbers: tuple[np.ndarray, ...]
  slot: np.ndarray


class _Left:
  """The texts that are not packed yet, by their length."""

  def __init__(self, lengths: np.ndarray, targets: np.ndarray | None):
    """Sorts the texts; those without tokens are not packed.

    Args:
      lengths: int [T], tokens.
      targets: int [n], the most targets of a text of 0, 1, 2, ... tokens;
        None for none.
    """
    self._targets = None if targets is None else targets.tolist()
    order = np.argsort(lengths, kind="stable")
    order = order[np.searchsorted(lengths[order], 1) :]
    sizes, starts = np.unique(lengths[order], return_index=True)
    # The last of each list is taken first: the one with the least number.
    self._texts = [part[::-1].tolist() for part in np.split(order, starts[1:])]
    self._sizes = sizes.tolist()
    if not self._sizes:
      self._texts = []

  @property
  def longest(self) -> int:
    """Tokens of the longest text; 0 if none is left."""
    return self._sizes[-1] if self._sizes else 0

  def fill(self, block: Block) -> list[int]:
    """Takes texts for a row of the block; [] if none fits."""
    taken, room, targets = [], block.length, block.targets
    sizes = self._sizes
    while len(taken) < block.texts:
      limit = room
      if self._targets is not None:  # They rise with the length.
        limit = min(limit, bisect.bisect_right(self._targets, targets) - 1)
      found = bisect.bisect_right(sizes, limit) - 1
      if found < 0:
        break
      size = sizes[found]
      taken.append(self._texts[found].pop())
      if not self._texts[found]:
        del self._texts[found], sizes[found]
      room -= size
      if self._targets is not None:
        targets -= self._targets[size]
    return taken


def pack(
  lengths: np.ndarray,
  blocks: Sequence[Block],
  targets: np.ndarray | None = None,
) -> Packed | None:
  """Packs the texts of a step.

  Args:
    lengths: int [T], tokens.
    blocks: The rows that there are, the longest first.
    targets: int [n], the most targets of a text of 0, 1, 2, ... tokens; None
      if no tokens are hidden.

  Returns:
    Where each text is; None if they do not fit.
  """
  left = _Left(lengths, targets)
  numbers = []
  slot = np.full(len(lengths), slots(blocks), np.int32)
  start = 0
  for block in blocks:
    number = np.full((block.rows, block.texts), -1, np.int32)
    for row in number:
      taken = left.fill(block)
      if not taken:
        break
      row[: len(taken)] = taken
    numbers.append(number)
    flat = number.ravel()
    used = np.flatnonzero(flat >= 0)
    slot[flat[used]] = start + used
    start += flat.size
  return None if left.longest else Packed(tuple(numbers), slot)


def slots(blocks: Sequence[Block]) -> int:
  """Places for texts in all rows."""
  return sum(block.rows * block.texts for block in blocks)


def tokens(blocks: Sequence[Block]) -> int:
  """Tokens that are computed, padding too."""
  return sum(block.rows * block.length for block in blocks)


def rows_needed(
  lengths: np.ndarray,
  blocks: Sequence[Block],
  targets: np.ndarray | None = None,
) -> list[int]:
  """How many rows of each block a step needs.

  Of all blocks but the last it has as many rows as they say, or as the texts
  need that are too long for the next block, if that is more.

  Args:
    lengths: As in `pack`, like the targets.
    blocks: The longest first.
    targets: See there.
  """
  left = _Left(lengths, targets)
  needed = []
  for number, block in enumerate(blocks):
    last = number + 1 == len(blocks)
    shorter = 0 if last else blocks[number + 1].length
    least = 0 if last else block.rows
    rows = 0
    while left.longest and (left.longest > shorter or rows < least):
      if not left.fill(block):
        raise ValueError(
          f"A text of {left.longest} tokens does not fit in a row of"
          f" {block.length}."
        )
      rows += 1
    needed.append(max(rows, least))
  return needed
