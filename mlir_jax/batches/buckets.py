"""Length buckets: which texts of a step stand together, padded to how much.

A bucket is a number of rows and a length. The longest texts of a step fill
the first bucket's rows, the next ones the second's, so a short text is padded
to the length of others like it, and the texts of a step stay what they were.
A run's buckets are chosen once, from the lengths in some of its steps, so that
few shapes are compiled.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Lengths are multiples of it: vector registers and tiles like them.
MULTIPLE = 8
# Steps whose lengths are looked at.
SAMPLES = 64
# A bucket that saves less than this share of the tokens is not worth its
# compilation.
_LEAST_SAVING = 0.03


class Bucket(NamedTuple):
  """Rows of a global batch that are padded to one length.

  Attributes:
    rows: How many.
    length: In tokens.
  """

  rows: int
  length: int


def order(lengths: np.ndarray) -> np.ndarray:
  """The texts in the order of the rows: the longest first, then by place.

  Args:
    lengths: int [T], tokens.

  Returns:
    int64 [T]: which text stands in a row.
  """
  return np.argsort(-np.asarray(lengths, np.int64), kind="stable")


def fit(lengths: np.ndarray, buckets: Sequence[Bucket]) -> bool:
  """Whether a step's texts, int [T], have room in the buckets."""
  longest = -np.sort(-np.asarray(lengths, np.int64))
  starts = np.cumsum([0, *(bucket.rows for bucket in buckets)])[:-1]
  room = np.array([bucket.length for bucket in buckets])
  return bool((longest[starts] <= room).all())


def widened(buckets: Sequence[Bucket], longest: int) -> tuple[Bucket, ...]:
  """The same rows, all as long as any text: every step's texts fit."""
  return tuple(bucket._replace(length=longest) for bucket in buckets)


def choose(
  lengths: np.ndarray, longest: int, quantum: int, most: int
) -> tuple[Bucket, ...]:
  """The buckets in which the texts of (nearly) all steps cost least.

  Above each length there must be rows for as many texts as any of the steps
  given has, and for four standard deviations more than they have on average:
  about one step in ten thousand then has more, and `widened` is for those.

  Args:
    lengths: int [S, T], tokens of the T texts of S steps.
    longest: As long as any text, here or in other steps. No bucket is longer;
      if none of these texts comes near it, none is as long.
    quantum: Rows of a bucket are multiples of it; it divides T.
    most: Buckets at most.

  Returns:
    The buckets, the longest first; their rows add up to T.

  Raises:
    ValueError: if the quantum does not divide T.
  """
  texts = lengths.shape[1]
  if texts % quantum:
    raise ValueError(f"{quantum} does not divide {texts} texts.")
  edges = [*range(MULTIPLE, longest, MULTIPLE), longest]
  above = np.stack([(lengths > edge).sum(axis=1) for edge in edges])  # [E, S]
  # Rounded: the last bit of a mean, which differs between machines, must not
  # decide about a row.
  likely = np.round(above.mean(axis=1) + 4 * above.std(axis=1), 6)
  needed = np.maximum(above.max(axis=1), np.ceil(likely))
  needed[-1] = 0
  rows = np.minimum(-(-needed // quantum) * quantum, texts).astype(np.int64)
  # cost[n][e]: tokens of the texts that are no longer than edges[e], in n + 1
  # buckets, the longest of which ends there.
  cost = [(texts - rows) * np.array(edges)]
  last = []  # last[n - 1][e]: the edge of the bucket before.
  for _ in range(1, most):
    total = cost[-1][:, None] + np.where(
      np.tri(len(edges), k=-1, dtype=bool).T,
      (rows[:, None] - rows) * np.array(edges),
      np.inf,
    )
    best = total.argmin(axis=0)
    cost.append(total[best, np.arange(len(edges))])
    last.append(best)
  amount = 0
  for n in range(1, len(cost)):
    if cost[n][-1] < (1 - _LEAST_SAVING) * cost[amount][-1]:
      amount = n
  chosen = [len(edges) - 1]
  for n in range(amount, 0, -1):
    chosen.append(int(last[n - 1][chosen[-1]]))
  ends = [*rows[chosen][1:], texts]
  return tuple(
    Bucket(int(end - start), edges[edge])
    for edge, start, end in zip(chosen, rows[chosen], ends, strict=True)
    if end > start
  )
