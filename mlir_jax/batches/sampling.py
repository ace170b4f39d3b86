"""Shuffling without a stored order: the row at any position, in O(1)."""

import functools
import hashlib
from typing import Any

import numpy as np

# The groups' quotas are exact over this many positions.
BLOCK = 4096

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio.
# Rounds of the Feistel network; even. With fewer rounds, ranges below 20 show
# visible patterns.
_ROUNDS = 8


@np.errstate(over="ignore")
def _scramble(x: np.ndarray) -> np.ndarray:
  """The bijection of uint64 at the end of SplitMix64.

  Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators,
  OOPSLA 2014, with the constants of Stafford's variant 13.
  """
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


@np.errstate(over="ignore")
def make_key(*parts) -> np.ndarray:
  """Folds integers, or arrays of them, into one uint64 key each.

  Args:
    *parts: Integers or integer arrays, broadcast against each other; or
      strings, which name the purpose of the key.

  Returns:
    uint64, of the broadcast shape.
  """
  key: Any = np.uint64(0)
  for part in parts:
    if isinstance(part, str):
      digest = hashlib.blake2b(part.encode(), digest_size=8).digest()
      part = int.from_bytes(digest, "little")
    key = _scramble((key + _GOLDEN) ^ np.asarray(part).astype(np.uint64))
  return key


def permute(index, size, key) -> np.ndarray:
  """Computes single values of a keyed permutation of range(size).

  A Feistel network permutes pairs from range(a) x range(b), where a * b is
  slightly larger than the size or equal to it. Cycle walking permutes the few
  values past the end again until they are inside (Black and Rogaway, Ciphers
  with Arbitrary Finite Domains, CT-RSA 2002).

  Args:
    index: Integers in [0, size).
    size: Integers in [1, 2**40].
    key: uint64, from `make_key`. The three arguments are broadcast.

  Returns:
    int64 in [0, size), of the broadcast shape. With the same size and key,
    different indices give different values.
  """
  index, size, key = np.broadcast_arrays(
    np.asarray(index, np.uint64),
    np.asarray(size, np.uint64),
    np.asarray(key, np.uint64),
  )
  shape = index.shape
  index, size, key = index.ravel(), size.ravel(), key.ravel()
  a = np.ceil(np.sqrt(size)).astype(np.uint64)
  b = (size + a - np.uint64(1)) // a
  value = _feistel(index, a, b, key)
  outside = np.flatnonzero(value >= size)
  while outside.size:
    value[outside] = _feistel(
      value[outside], a[outside], b[outside], key[outside]
    )
    outside = outside[value[outside] >= size[outside]]
  return value.astype(np.int64).reshape(shape)


@np.errstate(over="ignore")
def _feistel(x, a, b, key) -> np.ndarray:
  """A keyed bijection of range(a * b), elementwise; all uint64 [n]."""
  high, low = np.divmod(x, b)
  for _ in range(_ROUNDS // 2):
    key = key + _GOLDEN
    high = (high + _scramble(low + key) % a) % a
    key = key + _GOLDEN
    low = (low + _scramble(high + key) % b) % b
  return high * b + low


def smoothed(group_sizes, temperature: float) -> np.ndarray:
  """Returns weights ~ size ** (1 / temperature) of groups; float64 [G].

  The formula is that of Arivazhagan et al. (2019, arXiv 1907.05019).

  Args:
    group_sizes: int [G], rows of each group.
    temperature: Above 0. With 1, weights are proportional to sizes; larger
      values make them more equal.

  Raises:
    ValueError: if there are no rows.
  """
  group_sizes = np.asarray(group_sizes, np.int64)
  filled = group_sizes > 0
  if not filled.any():
    raise ValueError("No group has rows.")
  weights = (group_sizes / group_sizes.max()) ** (1 / temperature)
  return np.maximum(weights, 1e-30) * filled  # A power may underflow.


def quotas(weights: np.ndarray) -> np.ndarray:
  """Returns how many of each `BLOCK` positions go to each group.

  The largest remainders decide about the rounding to whole positions. A group
  with a weight above 0 gets at least one position.

  Args:
    weights: float64 [G], at least 0.

  Returns:
    int64 [G], with the sum `BLOCK`.

  Raises:
    ValueError: if no group has a weight, or too many have one.
  """
  weights = np.asarray(weights, np.float64)
  filled = weights > 0
  if not 0 < filled.sum() <= BLOCK:
    raise ValueError(
      f"{filled.sum()} groups have rows; 1 to {BLOCK} can be mixed."
    )
  # Rounded, because the last bit of a power differs between machines. It must
  # not decide about a position.
  ideal = np.round(BLOCK * weights / weights.sum(), 6)
  quota = np.maximum(np.floor(ideal), filled).astype(np.int64)
  missing = BLOCK - quota.sum()
  if missing > 0:
    quota[np.argsort(quota - ideal, kind="stable")[:missing]] += 1
  for _ in range(-missing):  # Too many small quotas were raised to one.
    quota[np.argmax(quota)] -= 1
  return quota


def draw(
  positions: np.ndarray,
  seed: int,
  stream: str,
  group_sizes,
  weights: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the rows at some positions of an endless stream.

  Groups are mixed with `quotas`. Within a group, every epoch reads every row
  once, and each epoch has another order. The row at a position does not depend
  on the other positions of the call.

  Args:
    positions: int64 [n], from 0; step * batch + place in the batch.
    seed: The run's seed.
    stream: The stream's name. With one seed, each stream has another order.
    group_sizes: int [G]; the rows of group 0 come first, then group 1's.
    weights: float64 [G], as in `quotas`. A group without rows has 0.

  Returns:
    rows: int64 [n].
    epochs: int64 [n], how often the row has been read before.
  """
  group_sizes = np.asarray(group_sizes, np.int64)
  quota = quotas(weights)
  block, slot = np.divmod(np.asarray(positions, np.int64), BLOCK)
  group, rank = np.empty_like(block), np.empty_like(block)
  for number in np.unique(block).tolist():
    groups, ranks = _interleave(tuple(quota.tolist()), seed, stream, number)
    inside = block == number
    group[inside] = groups[slot[inside]]
    rank[inside] = ranks[slot[inside]]
  size = group_sizes[group]
  epoch, rank = np.divmod(block * quota[group] + rank, size)
  row = permute(rank, size, make_key(seed, stream, "epoch", group, epoch))
  return (np.cumsum(group_sizes) - group_sizes)[group] + row, epoch


@functools.lru_cache(maxsize=32)  # A block lasts many batches.
def _interleave(
  quota: tuple[int, ...], seed: int, stream: str, block: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the order of the groups in one block.

  Returns:
    groups: int64 [BLOCK], the group that each position reads.
    ranks: int64 [BLOCK], how many earlier positions of the block read the same
      group. The ranks of a group ascend, so its epochs do not overlap.
  """
  key = make_key(seed, stream, "block", block)
  sorted_groups = np.repeat(np.arange(len(quota)), quota)
  groups = sorted_groups[permute(np.arange(BLOCK), BLOCK, key)]
  starts = np.cumsum(quota) - quota
  ranks = np.empty(BLOCK, np.int64)
  ranks[np.argsort(groups, kind="stable")] = (
    np.arange(BLOCK) - starts[sorted_groups]
  )
  groups.setflags(write=False)  # Shared by all callers.
  ranks.setflags(write=False)
  return groups, ranks


def alternate(
  steps: np.ndarray, seed: int, stream: str, quota: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
  """Gives each step one of several sources, which alternate evenly.

  Args:
    steps: int64 [n], from 0.
    seed: The run's seed.
    stream: The stream's name. With one seed, each stream has another order.
    quota: From `quotas`: how many of `BLOCK` steps each source has.

  Returns:
    sources: int64 [n], the number of each step's source.
    turns: int64 [n], how many earlier steps had that source.
  """
  block, slot = np.divmod(np.asarray(steps, np.int64), BLOCK)
  sources, turns = np.empty_like(block), np.empty_like(block)
  for number in np.unique(block).tolist():
    of_block, ranks = _spread_evenly(quota, seed, stream, number)
    inside = block == number
    sources[inside] = of_block[slot[inside]]
    turns[inside] = ranks[slot[inside]]
  return sources, block * np.array(quota)[sources] + turns


@functools.lru_cache(maxsize=32)
def _spread_evenly(
  quota: tuple[int, ...], seed: int, stream: str, block: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns an order of one block in which all sources are spread evenly.

  The block has a part for each step of a source, all of one size, and the step
  is at a random place in its part. The result is that of `_interleave`.
  """
  sources = np.repeat(np.arange(len(quota)), quota)
  ranks = np.arange(BLOCK) - (np.cumsum(quota) - quota)[sources]
  key = make_key(seed, stream, "one source", block, np.arange(BLOCK))
  inside = (key >> np.uint64(11)).astype(np.float64) / 2**53  # In [0, 1).
  order = np.argsort((ranks + inside) / np.array(quota)[sources], kind="stable")
  sources, ranks = sources[order], ranks[order]
  sources.setflags(write=False)  # Shared by all callers.
  ranks.setflags(write=False)
  return sources, ranks


def choose(
  counts: np.ndarray, amount: int, visits: np.ndarray, keys: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Chooses items of rows, such as hard negatives, without replacement.

  Successive visits to a row take successive items of one random order. A new
  order begins when too few items are left for a whole visit. So no item comes
  again before the others have been used, except for those few.

  Args:
    counts: int [n], the number of items of each row.
    amount: Items to choose, at least 1.
    visits: int64 [n], how often the row has been visited before.
    keys: uint64 [n], from `make_key`; a row has the same key at each visit.

  Returns:
    choice: int64 [n, amount] in [0, counts); different within a row.
    valid: bool [n, amount]. Where a row has fewer items, the last values are
      False, and the choice there is 0.
  """
  counts = np.asarray(counts, np.int64)[:, None]
  places = np.arange(amount)
  lasting = np.maximum(counts // amount, 1)  # Visits that use one order.
  order, turn = np.divmod(np.asarray(visits, np.int64)[:, None], lasting)
  valid = np.broadcast_to(places < counts, (len(counts), amount))
  choice = permute(
    np.where(valid, turn * amount + places, 0),
    np.maximum(counts, 1),
    make_key(np.asarray(keys)[:, None], order),
  )
  return np.where(valid, choice, 0), valid
