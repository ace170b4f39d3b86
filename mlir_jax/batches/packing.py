"""Packs texts into rows, so that little of a row is padding.

Rows come in blocks; the rows of a block have one length. Each row takes the
longest remaining text, then the texts that fill its room best: first fit
decreasing if that fills the row, otherwise a sum of lengths that comes nearest
to the room. Short texts are kept for later rows. The result is a pure function
of the lengths, in integers, so all hosts get the same.
"""

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# A row's length is a multiple of this, which suits vector registers and tiles.
MULTIPLE = 8
_TPU_MULTIPLE = 128
# In a row of this many tokens, attention costs as much as the rest of the
# encoder. Measured on one core of a CPU, for a layer with hidden states of 384
# and rows of 128 to 512 tokens: 808 in training with dropout, 1,068 without
# derivatives.
_ATTENTION = 800


def multiple(platform: str) -> int:
  """Returns the number of which row lengths on a platform are multiples."""
  return _TPU_MULTIPLE if platform == "tpu" else MULTIPLE


class Block(NamedTuple):
  """Rows of one length.

  Attributes:
    rows: The number of rows.
    length: Tokens of a row.
    texts: The largest number of texts in a row.
    targets: The largest number of hidden tokens in a row, for masked language
      modelling.
  """

  rows: int
  length: int
  texts: int
  targets: int = 0


class Packed(NamedTuple):
  """The places of a step's T texts.

  Attributes:
    numbers: For each block int32 [rows, texts]: the text at each place; -1 for
      none.
    slot: int32 [T], each text's index in `numbers`, flattened, one block after
      the other. For a text without tokens it is the number of all places.
  """

  numbers: tuple[np.ndarray, ...]
  slot: np.ndarray


class Unpacked:
  """The texts that are not packed yet, by their length."""

  def __init__(self, lengths: np.ndarray, targets: np.ndarray | None):
    """Sorts the texts; texts without tokens are not packed.

    Args:
      lengths: int [T], tokens.
      targets: int [n], the largest number of targets of a text of 0, 1, 2, ...
        tokens; None if no tokens are hidden.
    """
    self._targets = None if targets is None else targets.tolist()
    lengths = np.asarray(lengths, np.int64)
    self._order = np.argsort(lengths, kind="stable")
    first = np.count_nonzero(lengths <= 0)
    sizes, starts = np.unique(lengths[self._order[first:]], return_index=True)
    # The texts of a size that are not packed yet are order[next:end].
    self._sizes = sizes.tolist()
    self._next = (first + starts).tolist()
    self._end = [*self._next[1:], len(lengths)]

  @property
  def longest(self) -> int:
    """Tokens of the longest remaining text; 0 if none is left."""
    return self._sizes[-1] if self._sizes else 0

  def fill(self, block: Block, rows: int) -> tuple[int, list[np.ndarray]]:
    """Fills rows of the block that take texts of the same sizes.

    Args:
      block: The block.
      rows: The largest number of rows to fill.

    Returns:
      The number of rows that it filled, 0 if no text fits. For each place in a
      row, the texts at that place, int [rows].
    """
    pattern = self._largest_first(block)
    if not pattern:
      return 0, []
    pattern = self._fullest(block, pattern) or pattern
    rows = min(rows, *(self._count(i) // n for i, n in pattern.items()))
    columns = []
    for index, amount in pattern.items():  # The longest first.
      start = self._next[index]
      self._next[index] += rows * amount
      taken = self._order[start : self._next[index]]
      columns += list(taken.reshape(amount, rows))
      if not self._count(index):  # Larger indices are not needed any more.
        del self._sizes[index], self._next[index], self._end[index]
    return rows, columns

  def fill_rows(self, block: Block, down_to: int = 0) -> np.ndarray:
    """Fills the rows of a block while texts longer than `down_to` are left.

    Returns:
      int32 [rows, texts]: the text at each place; -1 for none.
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

  def _largest_first(self, block: Block) -> dict[int, int]:
    """Fills a row by first fit decreasing.

    Returns:
      The index of each size to its number of texts, the longest first.
    """
    sizes = self._sizes
    pattern = {}
    room, targets, count = block.length, block.targets, 0
    while count < block.texts:
      limit = room
      if self._targets is not None:  # These grow with the length.
        limit = min(limit, bisect.bisect_right(self._targets, targets) - 1)
      found = bisect.bisect_right(sizes, limit) - 1
      while found >= 0 and pattern.get(found, 0) == self._count(found):
        found -= 1  # This row already has all texts of that size.
      if found < 0:
        break
      pattern[found] = pattern.get(found, 0) + 1
      room -= sizes[found]
      if self._targets is not None:
        targets -= self._targets[sizes[found]]
      count += 1
    return pattern

  def _fullest(
    self, block: Block, pattern: dict[int, int]
  ) -> dict[int, int] | None:
    """Fills a row better than a pattern does, with the same longest text.

    It solves the subset-sum problem over the sizes. Bit n of an integer says
    whether some texts have n tokens together, so a size takes a few operations.
    Long texts come first, and it stops when a sum fills the row. So short texts
    are kept for later rows.

    Args:
      block: The row's block.
      pattern: From `_largest_first`.

    Returns:
      A pattern with more tokens, or None.
    """
    sizes = self._sizes
    longest = next(iter(pattern))
    room = block.length - sizes[longest]
    filled = sum(sizes[index] * n for index, n in pattern.items())
    if filled == block.length or filled == sizes[longest]:
      return None
    reached, every = 1, (2 << room) - 1
    before = []  # For each size: its index, and the sums without it.
    for index in range(bisect.bisect_right(sizes, room) - 1, -1, -1):
      size = sizes[index]
      left = min(self._count(index) - (index == longest), room // size)
      if left:
        before.append((index, reached))
      several = 1
      while left:
        several = min(several, left)
        reached |= reached << several * size & every
        left -= several
        several *= 2
      if reached >> room:
        break
    best = reached.bit_length() - 1
    if sizes[longest] + best <= filled:
      return None
    found = {longest: 1}
    for index, without in reversed(before):
      while not without >> best & 1:
        found[index] = found.get(index, 0) + 1
        best -= sizes[index]
    if sum(found.values()) > block.texts:
      return None
    if self._targets is not None and block.targets < sum(
      self._targets[sizes[index]] * n for index, n in found.items()
    ):
      return None
    return dict(sorted(found.items(), reverse=True))

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
    blocks: The available rows, the longest first.
    targets: int [n], the largest number of targets of a text of 0, 1, 2, ...
      tokens; None if no tokens are hidden.

  Returns:
    The place of each text; None if the texts do not fit.
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
  """Returns whether `pack` finds room for the texts of a step."""
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
  """Returns the number of places for texts in all rows."""
  return sum(block.rows * block.texts for block in blocks)


def tokens(blocks: Sequence[Block]) -> int:
  """Returns the number of computed tokens, padding included."""
  return sum(block.rows * block.length for block in blocks)


def work(blocks: Sequence[Block]) -> int:
  """Returns the cost of encoding the rows, an integer; see `cost`."""
  return sum(
    block.rows * block.length * (_ATTENTION + block.length) for block in blocks
  )


def cost(blocks: Sequence[Block]) -> float:
  """Returns the cost of encoding the rows; 1 is a token without attention."""
  return work(blocks) / _ATTENTION


def rows_needed(
  lengths: np.ndarray,
  blocks: Sequence[Block],
  targets: np.ndarray | None = None,
) -> list[int]:
  """Returns how many rows of each block a step needs.

  It fills the given number of rows of each block except the last. It fills more
  of them if there are more texts that are too long for the next block. The last
  block takes the remaining texts.

  Args:
    lengths: As in `pack`.
    blocks: The longest first.
    targets: As in `pack`.
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
  """The tokens of rows; all arrays are int32 [R, L].

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
  """Puts the tokens of texts into their rows, one text after the other.

  Args:
    number: int32 [R, S]; the text at each place, -1 for none.
    length: L.
    tokens: int32 [N], the texts' tokens, row by row.
    lengths: int [n], the number of tokens of each text, in the same order.

  Returns:
    The rows; each text's row, int64 [n]; and where the text begins in its row,
    int64 [n].
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
