"""Which texts are encoded together: rows of few shapes that are nearly full."""

import itertools
from collections.abc import Iterator

import numpy as np

from mlir_jax.batches import packing

# Rows are as long as the longest text may be, and a quarter of it, and so on
# down to this. A text is in the shortest rows in which two like it fit: little
# is padding then, and attention over a row stays cheap.
_SHORTEST = 32
_STEP = 4
# Tokens of a text, of which a batch holds as many as it holds texts.
_TEXT = 64
# Texts by whose lengths the longest rows are chosen.
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
    max_length: No text of the role is longer.
    batch_size: Texts in a batch, if they have 64 tokens, or are shorter and may
      not have more; or as many tokens.
    devices: Over how many the rows are split.
    multiple: Of which row lengths are multiples.

  Yields:
    A batch's row length, and which texts are in its rows, int32 [R, S]; -1 for
    none. The longest rows come first: what does not fit in memory fails at
    once.
  """
  blocks = _blocks(lengths, max_length, batch_size, devices, multiple)
  left = packing.Unpacked(lengths, None)
  for block, shorter in itertools.zip_longest(blocks, blocks[1:]):
    down_to = shorter.length // 2 if shorter else 0
    while left.longest > down_to:
      number = left.fill_rows(block, down_to)
      used = int((number[:, 0] >= 0).sum())
      # A few rows are not padded to a whole batch; by powers of two, so that
      # there are few shapes of these, too.
      rows = devices
      while rows < used:
        rows *= 2
      yield block.length, number[: min(rows, block.rows)]


def _blocks(
  lengths: np.ndarray,
  max_length: int,
  batch_size: int,
  devices: int,
  multiple: int,
) -> list[packing.Block]:
  """The rows of whole batches, the longest first."""

  def up(length):
    return max(multiple, -(-length // multiple) * multiple)

  longest = up(max_length)

  def block(length):
    rows = batch_size * min(longest, _TEXT) // length
    rows = max(rows // devices, 1) * devices
    texts = max(length // 8, min(length // 4, 16))
    return packing.Block(rows, length, texts)

  blocks = [block(longest)]
  while (length := up(blocks[-1].length // _STEP)) >= _SHORTEST:
    if length == blocks[-1].length:
      break
    blocks.append(block(length))
  # Where most of its texts take more than half of a row, rows of twice the
  # length may be fuller.
  shorter = blocks[1].length // 2 if len(blocks) > 1 else 0
  long = lengths[lengths > shorter]
  long = long[:: -(-len(long) // _SAMPLE) or 1]
  if 2 * len(long) > batch_size:
    blocks[0] = min(
      (blocks[0], block(2 * longest)), key=lambda each: _cost(long, each)
    )
  return blocks


def _cost(lengths: np.ndarray, block: packing.Block) -> float:
  """What the rows cost that some texts need."""
  (rows,) = packing.rows_needed(lengths, [block])
  return packing.cost([block._replace(rows=rows)])
