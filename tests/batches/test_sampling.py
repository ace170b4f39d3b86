"""Tests of the promises of (seed, position) sampling."""

import time

import numpy as np
import pytest

from mlir_jax.batches import sampling


@pytest.mark.parametrize("sizes", [range(1, 301), (997, 4096, 65537, 200_000)])
def test_permute_is_a_bijection(sizes):
  for size in sizes:
    values = sampling.permute(np.arange(size), size, sampling.make_key(3, size))
    assert values.dtype == np.int64
    np.testing.assert_array_equal(np.sort(values), np.arange(size))


def test_permute_stays_inside_very_large_ranges():
  size = 2**40
  index = np.concatenate([np.arange(5000), size - 1 - np.arange(5000)])
  values = sampling.permute(index, size, sampling.make_key(1))
  assert values.min() >= 0
  assert values.max() < size
  assert len(np.unique(values)) == len(index)
  # The values cover the range evenly: their mean is that of uniform ones.
  assert abs(values.mean() / size - 0.5) < 0.02


def test_permute_broadcasts_sizes_and_keys():
  size = np.array([1, 2, 3, 7, 100, 4096, 12345])
  key = sampling.make_key(0, np.arange(len(size)))
  index = np.array([0, 1, 2, 5, 99, 17, 12344])
  together = sampling.permute(index, size, key)
  alone = [
    int(sampling.permute(i, s, k))
    for i, s, k in zip(index, size, key, strict=True)
  ]
  assert together.tolist() == alone
  assert sampling.permute(np.zeros((2, 3), int), 5, key[0]).shape == (2, 3)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_small_permutations_all_occur(size):
  keys = sampling.make_key(11, np.arange(10_000))[:, None]
  orders = sampling.permute(np.arange(size), size, keys)
  found, counts = np.unique(orders, axis=0, return_counts=True)
  expected = 10_000 / len(found)
  assert len(found) == np.prod(np.arange(1, size + 1))
  assert counts.min() > expected / 2
  assert counts.max() < expected * 2


def test_permutations_of_two_keys_have_about_one_value_in_common():
  first, second = (
    sampling.permute(np.arange(10_000), 10_000, sampling.make_key(seed))
    for seed in (0, 1)
  )
  assert (first == second).sum() < 10
  assert (first == np.arange(10_000)).sum() < 10


def test_keys_differ_by_every_part():
  keys = [
    int(sampling.make_key(*parts))
    for parts in (
      (0, "a", 1),
      (1, "a", 0),
      (0, "b", 1),
      (0, "a", 2),
      (-1, "a", 1),
    )
  ]
  assert len(set(keys)) == len(keys)


def test_orders_are_the_same_in_every_version():
  # Another order would silently change the data of a resumed run.
  key = sampling.make_key(7, "retrieval", 3)
  assert int(key) == 7673957005587426432
  assert sampling.permute(np.arange(6), 1000, key).tolist() == [
    302,
    96,
    332,
    198,
    110,
    988,
  ]
  sizes = [5, 900]
  rows, epochs = sampling.draw(
    4000 + np.arange(6), 7, "retrieval", sizes, sampling.smoothed(sizes, 2.0)
  )
  assert rows.tolist() == [1, 385, 356, 263, 715, 123]
  assert epochs.tolist() == [54, 4, 4, 4, 4, 4]


def test_each_epoch_reads_every_row_once():
  size = 300
  rows, epochs = sampling.draw(np.arange(3 * size), 5, "x", [size], [1.0])
  np.testing.assert_array_equal(epochs, np.repeat(np.arange(3), size))
  for epoch in range(3):
    of_epoch = rows[epochs == epoch]
    np.testing.assert_array_equal(np.sort(of_epoch), np.arange(size))
  assert (rows[:size] != rows[size : 2 * size]).any()


def test_each_group_reads_its_rows_once_per_epoch_of_its_own():
  sizes = np.array([0, 7, 500, 40])
  rows, epochs = sampling.draw(
    np.arange(4 * sampling.BLOCK),
    5,
    "x",
    sizes,
    sampling.smoothed(sizes, 3.0),
  )
  starts = np.cumsum(sizes) - sizes
  for start, size in zip(starts, sizes, strict=True):
    inside = (rows >= start) & (rows < start + size)
    assert (np.diff(epochs[inside]) >= 0).all()  # Epochs do not overlap.
    for epoch in range(epochs[inside].max() if size else 0):  # Whole epochs.
      of_epoch = rows[inside & (epochs == epoch)] - start
      np.testing.assert_array_equal(np.sort(of_epoch), np.arange(size))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_quotas_follow_the_smoothed_sizes(temperature):
  sizes = np.array([12000, 3328, 0, 6189, 1, 331])
  quota = sampling.quotas(sampling.smoothed(sizes, temperature))
  weights = np.where(sizes, sizes ** (1 / temperature), 0)
  ideal = sampling.BLOCK * weights / weights.sum()
  assert quota.sum() == sampling.BLOCK
  assert quota[2] == 0
  assert quota[4] >= 1
  assert np.abs(quota - ideal).max() < 2


def test_every_block_has_exactly_its_quotas():
  sizes = np.array([1000, 50, 200])
  weights = sampling.smoothed(sizes, 2.0)
  rows, _ = sampling.draw(np.arange(3 * sampling.BLOCK), 2, "x", sizes, weights)
  group = np.searchsorted(np.cumsum(sizes), rows, side="right")
  for block in group.reshape(3, -1):
    counts = np.bincount(block, minlength=3)
    np.testing.assert_array_equal(counts, sampling.quotas(weights))
  # Mixed within a block, not one group after the other.
  assert set(group[:64]) == {0, 1, 2}


def test_more_small_groups_than_room_still_fill_the_block():
  quota = sampling.quotas([10**9, *[1] * 4000])
  assert quota.sum() == sampling.BLOCK
  assert quota.min() == 1
  assert quota[0] == 96
  quota = sampling.quotas([50] * 2500 + [1] * 1500)
  assert quota.sum() == sampling.BLOCK
  assert quota.min() == 1


def test_bad_mixtures_are_refused():
  with pytest.raises(ValueError, match="0 groups have rows"):
    sampling.quotas([0, 0])


def test_rows_do_not_depend_on_how_positions_are_asked_for():
  sizes, positions = [300, 40, 7], np.arange(8000, 8600)
  weights = sampling.smoothed(sizes, 2.0)
  whole, epochs = sampling.draw(positions, 1, "x", sizes, weights)
  for parts in (np.array_split(positions, 7), positions[:, None][:20]):
    pieces = [sampling.draw(part, 1, "x", sizes, weights) for part in parts]
    read = np.concatenate([rows for rows, _ in pieces])
    np.testing.assert_array_equal(read, whole[: len(read)])
  back, back_epochs = sampling.draw(positions[::-1], 1, "x", sizes, weights)
  np.testing.assert_array_equal(back[::-1], whole)
  np.testing.assert_array_equal(back_epochs[::-1], epochs)


def test_seeds_and_streams_have_orders_of_their_own():
  orders = {
    tuple(sampling.draw(np.arange(64), seed, stream, [500], [1.0])[0])
    for seed in (0, 1)
    for stream in ("parallel", "monolingual")
  }
  assert len(orders) == 4


def test_a_late_step_costs_what_the_first_costs():
  def cost(start):
    best = np.inf
    for _ in range(5):
      begin = time.perf_counter()
      sampling.draw(
        start + np.arange(128), 0, "x", [12000, 3000, 90], [4, 2, 1]
      )
      best = min(best, time.perf_counter() - begin)
    return best

  cost(0)
  assert cost(10**9 * 128) < 5 * cost(0) + 0.01


def test_choose_takes_different_items_and_says_where_they_lack():
  counts = np.array([1, 2, 3, 10, 0])
  keys = sampling.make_key(0, np.arange(5))
  choice, valid = sampling.choose(counts, 3, np.zeros(5, int), keys)
  assert valid.sum(axis=1).tolist() == [1, 2, 3, 3, 0]
  for items, there, count in zip(choice, valid, counts, strict=True):
    assert len(set(items[there])) == there.sum()
    assert (items[there] < count).all()
    assert (items[~there] == 0).all()


@pytest.mark.parametrize("count, amount", [(5, 1), (6, 2), (7, 2), (3, 3)])
def test_choose_reads_all_items_before_one_comes_again(count, amount):
  visits = np.arange(3 * (count // amount))
  choice, valid = sampling.choose(
    np.full(len(visits), count), amount, visits, np.full(len(visits), 9, "u8")
  )
  assert valid.all()
  passes = choice.reshape(3, -1)
  assert all(len(set(items)) == len(items) for items in passes)
  if count > amount:
    assert len({tuple(items) for items in passes}) > 1
