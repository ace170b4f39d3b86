"""Gives each sentence a wrong partner: the data of a control experiment."""

import itertools

import numpy as np

from mlir_jax.batches import sampling
from mlir_jax.data import store_join


def shuffle(
  parallel: store_join.StreamArrays, hashes: np.ndarray, seed: int
) -> store_join.StreamArrays:
  """Permutes the second sides of each language pair, so that all are wrong.

  Args:
    parallel: The translations of the whole store, all shards together. A right
      pair would be wrong for a shard that does not have it.
    hashes: Text hashes of the role "sentence", uint64 [T].
    seed: Determines the permutation.

  Returns:
    The stream with wrong pairs.

  Raises:
    ValueError: if the pairs of two languages cannot be shuffled.
  """
  texts = parallel.arrays["texts"].copy()
  start = 0
  for name, of_pair in itertools.groupby(
    parallel.groups, lambda group: group.language
  ):
    here = slice(start, start + sum(group.rows for group in of_pair))
    first, second = parallel.arrays["languages"][start]
    pairs = hashes[texts[here]]
    givers = _find_partners(pairs, first == second, name, seed)
    texts[here, 1] = texts[here, 1][givers]
    start = here.stop
  return parallel._replace(arrays={**parallel.arrays, "texts": texts})


def _find_partners(
  pairs: np.ndarray, one_language: bool, name: str, seed: int
) -> np.ndarray:
  """Finds a permutation with which every pair is wrong.

  Args:
    pairs: Text hashes, uint64 [n, 2].
    one_language: Whether both sides are in one language. Then a pair is right
      in either direction.
    name: The language pair.
    seed: Determines the permutation.

  Returns:
    int64 [n]: for each pair, the pair that gives it its second side. With the
    first side, none forms a right pair or a pair of two identical sides.

  Raises:
    ValueError: if no such permutation is found.
  """
  size = len(pairs)

  def permutation(length: int, turn: int) -> np.ndarray:
    key = sampling.make_key(seed, "shuffle parallel", name, turn)
    return sampling.permute(np.arange(length), size, key)

  hashes, numbers = np.unique(pairs, return_inverse=True)
  first, second = numbers.reshape(-1, 2).astype(np.int64).T
  # Both sides of a pair in one number.
  right_pairs = first * len(hashes) + second
  if one_language:
    reversed_pairs = second * len(hashes) + first
    right_pairs = np.concatenate([right_pairs, reversed_pairs])
  # One cycle through all pairs has no fixed point. But a sentence may be in
  # several pairs, so some pairs are still right, and are swapped again.
  cycle, givers = permutation(size, 0), np.empty(size, np.int64)
  givers[cycle] = np.roll(cycle, 1)
  for turn in range(1, 101):
    partner = second[givers]
    right = np.flatnonzero(
      np.isin(first * len(hashes) + partner, right_pairs) | (first == partner)
    )
    if not right.size:
      return givers
    for a, b in zip(right, permutation(right.size, turn), strict=True):
      givers[[a, b]] = givers[[b, a]]
  raise ValueError(
    f"The {size} pairs of {name} are too few, or too alike, to be shuffled"
    " so that all are wrong; leave this language pair out."
  )
