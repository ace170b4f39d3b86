"""Proposes sizes of a step: rows for each group of its texts."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from mlir_jax.batches import packing

# Group to the blocks of its rows, the longest first.
Plan = Mapping[str, tuple[packing.Block, ...]]

# The choice of plans has this many numbers of rows for the group with the most
# tokens, and fewer for the others.
_LEVELS = 32
_LEVELS_OF_OTHERS = 4
# Steps are ordered by their tokens. Each of so many parts of them gets numbers
# of long rows that suit it.
_PARTS = 5
# A plan has the long rows that this share of its part's steps need.
_ENOUGH = 0.9


@dataclasses.dataclass(frozen=True)
class Candidates:
  """Proposes the sizes of a run's steps.

  Attributes:
    shapes: Group to some choices of the lengths of its rows, the best first.
    targets: Group to the argument `targets` of `packing.pack`.
    chunk_rows: As in `row_plans.make_plans`.
    devices: As in `row_plans.make_plans`.
  """

  shapes: Mapping[str, Sequence[tuple[packing.Block, ...]]]
  targets: Mapping[str, np.ndarray | None]
  chunk_rows: int
  devices: int

  def largest(self, lengths: Mapping[str, np.ndarray], headroom: float) -> Plan:
    """Returns a plan that holds some steps.

    Args:
      lengths: Group to the tokens of its texts, int [S, T].
      headroom: The share of additional rows, for steps with more tokens.
    """
    return {
      group: self._rounded(
        _count_rows(
          of_group, self.shapes[group][0], self.targets[group], headroom
        )
      )
      for group, of_group in lengths.items()
    }

  def last_resort(self, texts: Mapping[str, int]) -> Plan:
    """Returns a plan that holds any texts: each has a row of its own.

    Args:
      texts: Group to its number of texts.
    """
    return {
      group: self._rounded([self.shapes[group][0][0]._replace(rows=count)])
      for group, count in texts.items()
    }

  def smaller(
    self, lengths: Mapping[str, np.ndarray], largest: Plan
  ) -> tuple[list[Plan], np.ndarray]:
    """Returns plans that cost less than the largest.

    Args:
      lengths: Group to the tokens of its texts, int [S, T]; the heaviest step
        first.
      largest: The plan that holds all expected steps.

    Returns:
      C plans; and whether each of them holds each step, bool [C, S].
    """
    groups = sorted(lengths, key=lambda group: -int(lengths[group].sum()))
    of_groups = [
      self._of_group(group, lengths[group], largest[group], group == groups[0])
      for group in groups
    ]
    plans, holds = [], []
    for some in itertools.product(*(options.items() for options in of_groups)):
      plan = {group: each[0] for group, each in zip(groups, some, strict=True)}
      if cost(plan) < cost(largest):
        plans.append({group: plan[group] for group in lengths})
        holds.append(np.all([each[1] for each in some], axis=0))
    steps = len(lengths[groups[0]])
    return plans, np.array(holds, bool).reshape(len(plans), steps)

  def _of_group(
    self,
    group: str,
    lengths: np.ndarray,
    largest: tuple[packing.Block, ...],
    is_first: bool,
  ) -> dict[tuple[packing.Block, ...], np.ndarray]:
    """Returns possible rows of a group, and which steps they hold, bool [S].

    Args:
      group: The group.
      lengths: Tokens of its texts, int [S, T]; the heaviest step first.
      largest: Its rows in the largest plan.
      is_first: Whether this group has the most tokens.
    """
    options = {largest: np.ones(len(lengths), bool)}
    levels = _LEVELS if is_first else _LEVELS_OF_OTHERS
    for before in (
      before
      for shape in self.shapes[group][: None if is_first else 1]
      for before in _long_rows(
        lengths, shape, self.targets[group], _PARTS if is_first else 1
      )
    ):
      needed = np.array(
        [
          packing.rows_needed(step, before, self.targets[group])
          for step in lengths
        ]
      )
      enough = [block.rows for block in before[:-1]]
      is_held = (needed[:, :-1] <= enough).all(axis=1)
      rows = np.sort(needed[is_held, -1])
      if not rows.size:
        continue
      for number in np.unique(rows[spread(len(rows), levels + 1)]):
        last = before[-1]._replace(rows=max(1, int(number)))
        blocks = self._rounded([*before[:-1], last])
        fits = is_held & (needed[:, -1] <= blocks[-1].rows)
        options[blocks] = options.get(blocks, False) | fits
    return options

  def _rounded(
    self, blocks: Sequence[packing.Block]
  ) -> tuple[packing.Block, ...]:
    """Rounds each block's rows up to equal parts for devices and chunks."""
    blocks = [block for block in blocks if block.rows]

    def split(parts):
      quantum = parts * self.devices
      return tuple(
        block._replace(rows=-(-block.rows // quantum) * quantum)
        for block in blocks
      )

    if not self.chunk_rows:
      return split(1)
    parts = 2  # See `chunking.count_parts`.
    while (
      packing.tokens(split(parts)) > parts * self.chunk_rows * blocks[0].length
    ):
      parts += 1
      if parts * self.devices > sum(block.rows for block in blocks):
        return split(parts)  # One row each: no smaller chunk is possible.
    # With one or two more parts, less rounding may be necessary.
    return min(map(split, range(parts, parts + 3)), key=packing.tokens)


def cost(plan: Plan) -> int:
  """Returns the cost of a step, an integer."""
  return sum(map(packing.work, plan.values()))


def spread(size: int, amount: int) -> np.ndarray:
  """Returns at most `amount` evenly spaced numbers from 0 to size - 1."""
  return np.unique(np.linspace(0, size - 1, amount).astype(int))


def _count_rows(
  lengths: np.ndarray,
  blocks: Sequence[packing.Block],
  need: np.ndarray | None,
  headroom: float = 0.0,
) -> list[packing.Block]:
  """Returns the blocks with enough rows for each of some steps.

  Args:
    lengths: int [S, T], tokens of the texts of the steps.
    blocks: The blocks; their numbers of rows are ignored.
    need: The argument `targets` of `packing.pack`.
    headroom: The share of additional rows, for steps with more tokens.
  """
  counted = [block._replace(rows=0) for block in blocks]
  for number, block in enumerate(counted):
    # The rows of earlier blocks are fixed. Later blocks have none yet, so this
    # one takes only texts that are too long for the next; the last takes the
    # rest.
    of_steps = [
      packing.rows_needed(step, counted, need)[number] for step in lengths
    ]
    rows = max(of_steps)
    counted[number] = block._replace(rows=int(np.ceil(rows * (1 + headroom))))
  if not packing.tokens(counted):
    counted[-1] = counted[-1]._replace(rows=1)
  return counted


def _long_rows(
  lengths: np.ndarray,
  blocks: Sequence[packing.Block],
  need: np.ndarray | None,
  parts: int,
) -> list[tuple[packing.Block, ...]]:
  """Returns numbers of rows for all blocks but the last, which gets none.

  Args:
    lengths: int [S, T], the heaviest step first.
    blocks: The lengths of rows.
    need: The argument `targets` of `packing.pack`.
    parts: Each of so many parts of the steps gets numbers that suit it.
  """
  found = []
  for steps in np.array_split(lengths, min(parts, len(lengths))):
    counted = [block._replace(rows=0) for block in blocks]
    for number in range(len(blocks) - 1):
      rows = np.sort(
        [packing.rows_needed(step, counted, need)[number] for step in steps]
      )
      enough = rows[int(_ENOUGH * (len(rows) - 1))]
      counted[number] = counted[number]._replace(rows=int(enough))
    if tuple(counted) not in found:
      found.append(tuple(counted))
  return found
