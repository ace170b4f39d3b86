"""Packing: which texts share a row, so that little of it is padding.

Rows come in blocks: so many rows of one length. Texts are packed first fit
decreasing: each row takes the longest text that is left and still fits, again
and again. The result is a pure function of the lengths, so all hosts agree.
"""

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# A row's length is a multiple of it: vector registers and tiles like them.
MULTIPLE = 8
_TPU_MULTIPLE = 128
# In a row of so many tokens, attention is taken to cost what all else does: by
# measurement on CPUs with hidden states of 384 (see benchmarks/README.md).
_ATTENTION = 512


def multiple(platform: str) -> int:
  """What rows' lengths are multiples of on a platform: "cpu", "tpu", ..."""
  return _TPU_MULTIPLE if platform == "tpu" else MULTIPLE


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


class Unpacked:
  """The texts that are not packed yet, by their length."""

  def __init__(self, lengths: np.ndarray, targets: np.ndarray | None):
    """Sorts the texts; those without tokens are not packed.

    Args:
      lengths: int [T], tokens.
      targets: int [n], the most targets of a text of 0, 1, 2, ... tokens;
        None for none.
    """
    self._targets = None if targets is None else targets.tolist()
    lengths = np.asarray(lengths, np.int64)
    self._order = np.argsort(lengths, kind="stable")
    first = np.count_nonzero(lengths <= 0)
    sizes, starts = np.unique(lengths[self._order[first:]], return_index=True)
    # Of each size the texts order[next:end] are left.
    self._sizes = sizes.tolist()
    self._next = (first + starts).tolist()
    self._end = [*self._next[1:], len(lengths)]

  @property
  def longest(self) -> int:
    """Tokens of the longest text; 0 if none is left."""
    return self._sizes[-1] if self._sizes else 0

  def fill(self, block: Block, rows: int) -> tuple[int, list[np.ndarray]]:
    """Takes texts for some rows of the block that get texts of the same sizes.

    Args:
      block: The block.
      rows: How many rows there are, at most.

    Returns:
      How many rows it filled, 0 if no text fits; and for each place in a row
      the texts that are there, int [rows].
    """
    sizes = self._sizes
    pattern: dict[int, int] = {}  # Index of a size to how many of it.
    room, targets, count = block.length, block.targets, 0
    while count < block.texts:
      limit = room
      if self._targets is not None:  # They rise with the length.
        limit = min(limit, bisect.bisect_right(self._targets, targets) - 1)
      found = bisect.bisect_right(sizes, limit) - 1
      while found >= 0 and pattern.get(found, 0) == self._count(found):
        found -= 1  # This row has all of that size.
      if found < 0:
        break
      pattern[found] = pattern.get(found, 0) + 1
      room -= sizes[found]
      if self._targets is not None:
        targets -= self._targets[sizes[found]]
      count += 1
    if not pattern:
      return 0, []
    rows = min(rows, *(self._count(i) // n for i, n in pattern.items()))
    columns = []
    for index, amount in pattern.items():  # From the longest on.
      start = self._next[index]
      self._next[index] += rows * amount
      taken = self._order[start : self._next[index]]
      columns += list(taken.reshape(amount, rows))
      if not self._count(index):  # All later indices have been dealt with.
        del self._sizes[index], self._next[index], self._end[index]
    return rows, columns

  def fill_rows(self, block: Block, down_to: int = 0) -> np.ndarray:
    """Fills the rows of a block while texts longer than `down_to` are left.

    Returns:
      int32 [rows, texts]: which text is there; -1 none.
    """
    number = np.full((block.rows, block.texts), -1, np.int32)
    row = 0
    while row < block.rows and self.longest > down_to:
      count, columns = self.fill(block, block.rows - row)
      if not count:
        break
      for place, texts in enumerate(columns):
        number[row : row + count, place] = texts
      row += count
    return number

  def _count(self, index: int) -> int:
    return self._end[index] - self._next[index]


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
  left = Unpacked(lengths, targets)
  numbers = []
  slot = np.full(len(lengths), slots(blocks), np.int32)
  start = 0
  for block in blocks:
    number = left.fill_rows(block)
    numbers.append(number)
    flat = number.ravel()
    used = np.flatnonzero(flat >= 0)
    slot[flat[used]] = start + used
    start += flat.size
  return None if left.longest else Packed(tuple(numbers), slot)


def fits(
  lengths: np.ndarray,
  blocks: Sequence[Block],
  targets: np.ndarray | None = None,
) -> bool:
  """Whether `pack` finds room for the texts of a step."""
  left = Unpacked(lengths, targets)
  for block in blocks:
    rows = block.rows
    while rows and left.longest:
      count, _ = left.fill(block, rows)
      if not count:
        break
      rows -= count
  return not left.longest


def slots(blocks: Sequence[Block]) -> int:
  """Places for texts in all rows."""
  return sum(block.rows * block.texts for block in blocks)


def tokens(blocks: Sequence[Block]) -> int:
  """Tokens that are computed, padding too."""
  return sum(block.rows * block.length for block in blocks)


def cost(blocks: Sequence[Block]) -> float:
  """What encoding the rows costs, in tokens of which attention is free."""
  return sum(
    block.rows * block.length * (1 + block.length / _ATTENTION)
    for block in blocks
  )


def rows_needed(
  lengths: np.ndarray,
  blocks: Sequence[Block],
  targets: np.ndarray | None = None,
) -> list[int]:
  """How many rows of each block a step needs.

  Of all blocks but the last it takes as many rows as they say, or as the texts
  need that are too long for the next block, if that is more.

  Args:
    lengths: As in `pack`, like the targets.
    blocks: The longest first.
    targets: See there.
  """
  left = Unpacked(lengths, targets)
  needed = []
  for number, block in enumerate(blocks):
    last = number + 1 == len(blocks)
    shorter = 0 if last else blocks[number + 1].length
    rows = 0
    while left.longest and (left.longest > shorter or rows < block.rows):
      limit = len(lengths) if left.longest > shorter else block.rows - rows
      count, _ = left.fill(block, limit)
      if not count:
        raise ValueError(
          f"A text of {left.longest} tokens does not fit in a row of"
          f" {block.length}."
        )
      rows += count
    needed.append(rows if last else max(rows, block.rows))
  return needed


class Laid(NamedTuple):
  """The tokens of some rows; all int32 [R, L].

  Attributes:
    ids: Tokens; 0 is padding.
    position: Each token's place in its text, from 0.
    segment: The number of its text in the row, from 1; 0 for padding.
  """

  ids: np.ndarray
  position: np.ndarray
  segment: np.ndarray


def lay_out(
  number: np.ndarray, length: int, tokens: np.ndarray, lengths: np.ndarray
) -> tuple[Laid, np.ndarray, np.ndarray]:
  """Puts the tokens of texts one behind the other into their rows.

  Args:
    number: int32 [R, S]; which text is there, -1 for none.
    length: L.
    tokens: int32 [N], the texts' tokens, row by row.
    lengths: int [n], tokens of each text, in the same order.

  Returns:
    The rows; and each text's row, and where in it the text begins, int64 [n].
  """
  row, place = np.nonzero(number >= 0)
  of_row = np.zeros(number.shape, np.int64)
  of_row[row, place] = lengths
  start = (of_row.cumsum(axis=1) - of_row)[row, place]
  ends = np.cumsum(lengths, dtype=np.int64)
  position = np.arange(len(tokens)) - np.repeat(ends - lengths, lengths)
  at = np.repeat(row * length + start, lengths) + position
  rows = np.zeros((3, len(number) * length), np.int32)
  rows[:, at] = tokens, position, np.repeat(place + 1, lengths)
  return Laid(*rows.reshape(3, -1, length)), row, start
