"""Chooses the lengths of rows that cost least for the texts of a run."""

import itertools
from collections.abc import Sequence

import numpy as np

from mlir_jax.batches import packing

# A further block must save at least this share: a program of more blocks takes
# longer to compile.
_MIN_SAVING = 0.01
# Other lengths that cost at most this share more are of use, too: with them,
# more sizes of a step are possible.
_ALIKE = 0.02
_MOST = 3
# The first row length divided by the longest text.
_WHOLE = (1, 1.06, 1.12, 1.25, 1.5, 2, 3, 4)
# A row length divided by the next one.
_PARTS = (1.33, 1.6, 2, 2.5, 3, 4, 6, 8)
_TWO_PARTS = (1.6, 2, 2.5, 3, 4)


def choose(
  lengths: Sequence[np.ndarray],
  longest: int,
  *,
  row_length: int = 0,
  multiple: int = packing.MULTIPLE,
  targets: np.ndarray | None = None,
  quantum: int = 1,
) -> list[tuple[packing.Block, ...]]:
  """Chooses the row lengths that cost least for some steps.

  Args:
    lengths: The tokens of the texts of steps with about the same number of
      tokens, int [T] each.
    longest: Tokens of the longest possible text.
    row_length: Tokens of a row; 0 to choose.
    multiple: Row lengths are multiples of this.
    targets: As in `packing.pack`.
    quantum: Each block's number of rows is a multiple of this.

  Returns:
    Some choices, the best first. Each has blocks without rows yet, the longest
    rows first.

  Raises:
    ValueError: if `row_length` is less than `longest`.
  """

  def up(length):
    return max(multiple, -(-int(length) // multiple) * multiple)

  if row_length and row_length < longest:
    raise ValueError(
      f"batch.row_length is {row_length}, but there are texts of {longest}"
      f" tokens: set it to {up(longest)} or more, or to 0."
    )
  whole = up(longest)
  candidates = {(row_length,)} if row_length else {
    *((up(whole * factor),) for factor in _WHOLE),
    *(
      (up(whole * factor), up(whole / part))
      for factor in (1, 1.5)
      for part in (1, *_PARTS)
    ),
    *(
      (whole, up(whole / part), up(whole / part / again))
      for part in _TWO_PARTS
      for again in _TWO_PARTS
    ),
  }  # fmt: skip
  found = []
  for candidate in candidates:
    if any(b >= a for a, b in itertools.pairwise(candidate)):
      continue
    blocks = tuple(
      packing.Block(0, length, *_capacity(lengths, length, targets))
      for length in candidate
    )
    needed = np.max(
      [packing.rows_needed(step, blocks, targets) for step in lengths], axis=0
    )
    amount = packing.work(
      [
        block._replace(rows=-(-int(rows) // quantum) * quantum)
        for block, rows in zip(blocks, needed, strict=True)
      ]
    )
    found.append((amount * (1 + _MIN_SAVING * len(blocks)), blocks))
  found.sort()
  least = found[0][0]
  return [blocks for n, blocks in found[:_MOST] if n <= least * (1 + _ALIKE)]


def _capacity(
  lengths: Sequence[np.ndarray], length: int, targets: np.ndarray | None
) -> tuple[int, int]:
  """Returns the largest numbers of texts and of hidden tokens in a row."""
  every = np.concatenate(lengths)
  fitting = every[(every > 0) & (every <= length)]
  if not fitting.size:
    fitting = np.array([length])
  texts = int(np.ceil(2 * length / fitting.mean()))
  if targets is None:
    return texts, 0
  share = targets[fitting].sum() / fitting.sum()
  return texts, max(int(targets[-1]), int(np.ceil(1.15 * share * length)))
