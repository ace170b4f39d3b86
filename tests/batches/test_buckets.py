"""Buckets hold the texts of (nearly) every step, and cost little."""

import itertools

import numpy as np
import pytest

from mlir_jax.batches import buckets
from mlir_jax.batches.buckets import Bucket


def lengths_of(steps, texts, longest=64, seed=0):
  random = np.random.default_rng(seed)
  drawn = random.lognormal(2.3, 0.7, (steps, texts)).astype(int) + 3
  return np.minimum(drawn, longest)


def tokens_of(chosen):
  return sum(bucket.rows * bucket.length for bucket in chosen)


@pytest.mark.parametrize("quantum", [1, 8, 40])
@pytest.mark.parametrize("most", [1, 2, 4])
def test_they_hold_every_step_seen_and_nearly_all_others(quantum, most):
  seen = lengths_of(64, 240)
  chosen = buckets.choose(seen, 64, quantum, most)
  assert 1 <= len(chosen) <= most
  assert sum(bucket.rows for bucket in chosen) == 240
  assert all(bucket.rows % quantum == 0 for bucket in chosen)
  assert chosen[0].length == 64  # Some text was that long.
  lengths = [bucket.length for bucket in chosen]
  assert lengths == sorted(lengths, reverse=True)
  assert all(buckets.fit(step, chosen) for step in seen)
  others = lengths_of(2000, 240, seed=1)
  assert np.mean([buckets.fit(step, chosen) for step in others]) > 0.998
  wide = buckets.widened(chosen, 64)
  assert all(buckets.fit(step, wide) for step in others)


def test_no_other_buckets_of_that_number_cost_less():
  """Against all choices of lengths, with the rows that each asks for."""
  seen = lengths_of(64, 96, longest=40)
  found = buckets.choose(seen, 40, 8, 3)
  costs = []
  for inner in itertools.combinations(range(8, 40, 8), 2):
    edges = [40, *sorted(inner, reverse=True)]
    above = [(seen > edge).sum(axis=1) for edge in edges[1:]]
    needed = [0] + [
      -(-max(n.max(), np.ceil(n.mean() + 4 * n.std())) // 8) * 8 for n in above
    ]
    ends = [*needed[1:], 96]
    costs.append(
      sum(
        (end - start) * edge
        for start, end, edge in zip(needed, ends, edges, strict=True)
      )
    )
  assert tokens_of(found) == min(costs) < 96 * 40


def test_texts_that_no_sampled_step_had_fit_when_widened():
  seen = lengths_of(64, 64, longest=12)
  chosen = buckets.choose(seen, 64, 8, 4)
  assert chosen[0].length < 64
  longer = np.append(seen[0, 1:], 64)
  assert not buckets.fit(longer, chosen)
  assert buckets.fit(longer, buckets.widened(chosen, 64))


def test_a_bucket_that_saves_little_is_not_made():
  alike = np.full((64, 64), 16)
  assert buckets.choose(alike, 16, 8, 4) == (Bucket(64, 16),)
  # Nor one without rows, where a quantum is all texts.
  assert buckets.choose(lengths_of(64, 64), 64, 64, 4) == (Bucket(64, 64),)


def test_texts_are_put_in_order_of_length_and_place():
  assert buckets.order([3, 5, 0, 5, 3]).tolist() == [1, 3, 0, 4, 2]


def test_texts_that_are_too_long_do_not_fit():
  chosen = (Bucket(2, 16), Bucket(2, 8))
  assert buckets.fit([8, 16, 16, 3], chosen)
  assert not buckets.fit([9, 16, 16, 3], chosen)
  assert not buckets.fit([1, 17, 1, 1], chosen)


def test_a_quantum_that_does_not_divide_is_refused():
  with pytest.raises(ValueError, match="7 does not divide 64"):
    buckets.choose(lengths_of(4, 64), 64, 7, 2)
