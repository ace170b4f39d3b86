"""Packs texts for encoding into batches of rows: few shapes, little padding."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from mlir_jax.batches import packing

# The longest rows are as long as the longest possible text. Each next block has
# rows of a quarter of that length, down to this one. A text is in the shortest
# rows that hold two such texts: then there is little padding, and attention in
# a row is cheap.
_SHORTEST = 32
_STEP = 4
# Rows in which the texts leave this share free are cut: texts of more than half
# of a row often find no text that fills it.
_CUT = 8
# A batch size counts texts of this many tokens.
_TEXT = 64
# The number of texts whose lengths decide about the longest rows.
_SAMPLE = 2048


def pack(
  lengths: np.ndarray,
  max_length: int,
  batch_size: int,
  *,
  devices: int = 1,
  multiple: int = packing.MULTIPLE,
) -> Iterator[tuple[int, np.ndarray]]:
  """Packs texts into batches of rows.

  Args:
    lengths: int [n], tokens of the texts.
    max_length: The largest possible length of a text of the role.
    batch_size: The size of a batch, in texts of 64 tokens, or of `max_length`
      tokens if that is less.
    devices: The number of devices over which the rows are split.
    multiple: Row lengths are multiples of this.

  Yields:
    A batch's row length; and the texts in its rows, int32 [R, S], -1 for none.
    The longest rows come first, so if memory is too small, this fails at once.
  """

  def up(length):
    return max(multiple, -(-length // multiple) * multiple)

  longest = up(max_length)

  def block(length):
    rows = batch_size * min(longest, _TEXT) // length
    rows = max(rows // devices, 1) * devices
    texts = max(length // 8, min(length // 4, 16))
    return packing.Block(rows, length, texts)

  blocks = _blocks(lengths, longest, batch_size, up, block)
  left = packing.Unpacked(lengths, None)
  for whole, shorter in itertools.zip_longest(blocks, blocks[1:]):
    number = left.fill_rows(
      whole._replace(rows=len(lengths)), shorter.length // 2 if shorter else 0
    )
    number = number[number[:, 0] >= 0]
    cut = block(up(whole.length - whole.length // _CUT))
    used = np.where(number >= 0, lengths[number], 0).sum(axis=1)
    short = np.flatnonzero(used <= cut.length)
    # Only whole batches are cut, so there is one more shape and not two.
    short = short[: len(short) // cut.rows * cut.rows]
    if cut.length == whole.length:
      short = short[:0]
    yield from _batches(np.delete(number, short, axis=0), whole, devices)
    yield from _batches(number[short], cut, devices)


def _batches(
  number: np.ndarray, block: packing.Block, devices: int
) -> Iterator[tuple[int, np.ndarray]]:
  """Splits rows into batches of the block's size; see `pack`."""
  for start in range(0, len(number), block.rows):
    some = number[start : start + block.rows]
    # A last batch of few rows is not padded to a whole batch. Its size is
    # doubled until it is enough, so there are few shapes.
    rows = devices
    while rows < len(some):
      rows *= 2
    rows = min(rows, block.rows)
    missing = rows - len(some)
    yield (
      block.length,
      np.pad(some, ((0, missing), (0, 0)), constant_values=-1),
    )


def _blocks(
  lengths: np.ndarray,
  longest: int,
  batch_size: int,
  up: Callable[[int], int],
  block: Callable[[int], packing.Block],
) -> list[packing.Block]:
  """Returns the rows of whole batches, the longest first.

  Args:
    lengths: As in `pack`.
    longest: The largest possible length, rounded up.
    batch_size: As in `pack`.
    up: Rounds a row length up.
    block: Makes the rows of a batch, from their length.
  """
  blocks = [block(longest)]
  while (length := up(blocks[-1].length // _STEP)) >= _SHORTEST:
    if length == blocks[-1].length:
      break
    blocks.append(block(length))
  # If most texts of the longest block take more than half of a row, rows of
  # twice the length may have less padding.
  shorter = blocks[1].length // 2 if len(blocks) > 1 else 0
  long = lengths[lengths > shorter]
  long = long[:: -(-len(long) // _SAMPLE) or 1]
  if 2 * len(long) > batch_size:
    blocks[0] = min(
      (blocks[0], block(2 * longest)), key=lambda each: _cost(long, each)
    )
  return blocks


def _cost(lengths: np.ndarray, block: packing.Block) -> float:
  """Returns the cost of the rows that some texts need."""
  (rows,) = packing.rows_needed(lengths, [block])
  return packing.cost([block._replace(rows=rows)])
