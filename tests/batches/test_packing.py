"""Tests that packed rows hold all texts and have little padding."""

import itertools

import numpy as np
import pytest

from mlir_jax.batches import packing, plan_sizes, row_plans
from mlir_jax.batches.packing import Block


def lengths_of(count, seed=0, longest=128):
  drawn = np.random.default_rng(seed).lognormal(3.5, 0.6, count)
  return np.clip(drawn, 3, longest).astype(int)


def first_fit_decreasing(lengths, length):
  rows = []
  for size in sorted(lengths, reverse=True):
    for row in rows:
      if sum(row) + size <= length:
        row.append(size)
        break
    else:
      rows.append([size])
  return sorted(rows)


@pytest.mark.parametrize("seed", range(5))
def test_a_row_takes_the_longest_text_and_those_that_fill_it_best(seed):
  lengths = lengths_of(11, seed)
  (row,) = packing.Unpacked(lengths, None).fill_rows(Block(1, 150, 11))
  *others, longest = sorted(lengths.tolist())
  sums = {
    sum(some) for n in range(11) for some in itertools.combinations(others, n)
  }
  best = max(each for each in sums if longest + each <= 150)
  assert lengths[row[row >= 0]].sum() == longest + best
  # The limits of a row hold, too.
  need = row_plans.targets(0.15, 128)
  for block in (Block(1, 150, 2), Block(1, 150, 11, 25)):
    (row,) = packing.Unpacked(
      lengths, need if block.targets else None
    ).fill_rows(block)
    row = row[row >= 0]
    assert lengths[row].max() == longest and len(row) <= block.texts
    assert not block.targets or need[lengths[row]].sum() <= 25


def test_rows_are_fewer_than_by_first_fit_decreasing():
  for seed in range(5):
    lengths = lengths_of(300, seed)
    (needed,) = packing.rows_needed(lengths, [Block(0, 128, 99)])
    simple = len(first_fit_decreasing(lengths.tolist(), 128))
    assert -(-lengths.sum() // 128) <= needed <= simple


def test_every_text_has_a_place_of_its_own_and_no_row_is_too_full():
  lengths = lengths_of(300)
  lengths[7] = 0
  need = row_plans.targets(0.15, 128)
  blocks = [Block(30, 256, 8, 45), Block(99, 128, 4, 25)]
  packed = packing.pack(lengths, blocks, need)
  flat = np.concatenate([number.ravel() for number in packed.numbers])
  np.testing.assert_array_equal(
    np.delete(flat[np.delete(packed.slot, 7)], []), np.delete(np.arange(300), 7)
  )
  assert packed.slot[7] == packing.slots(blocks) == len(flat)
  assert (flat >= 0).sum() == 299
  for block, number in zip(blocks, packed.numbers, strict=True):
    assert number.shape == (block.rows, block.texts)
    is_text = number >= 0
    for amounts, most in (
      (lengths, block.length),
      (need[lengths], block.targets),
    ):
      assert (np.where(is_text, amounts[number], 0).sum(axis=1) <= most).all()
  assert packing.pack(lengths, [Block(30, 256, 8, 45)], need) is None


def test_the_rows_that_are_needed_are_enough_and_no_fewer_are():
  for seed in range(10):
    lengths = lengths_of(200, seed)
    blocks = [Block(0, 128, 8), Block(0, 64, 4)]
    needed = packing.rows_needed(lengths, blocks)
    enough = [b._replace(rows=n) for b, n in zip(blocks, needed, strict=True)]
    assert packing.pack(lengths, enough) is not None
    for fewer in (0, 1):
      tight = list(enough)
      tight[fewer] = tight[fewer]._replace(rows=needed[fewer] - 1)
      if fewer:
        assert packing.pack(lengths, tight) is None
    again = packing.rows_needed(lengths, [enough[0], blocks[1]])
    assert again == needed
  with pytest.raises(ValueError, match="of 128 tokens does not fit"):
    packing.rows_needed(np.array([128]), [Block(0, 64, 4)])


def test_tokens_are_laid_out_with_positions_of_their_own():
  number = np.array([[2, 0], [-1, -1], [1, -1]])
  tokens = np.arange(10, 19)
  rows, row, start = packing.lay_out(number, 6, tokens, np.array([4, 2, 3]))
  assert rows.ids.tolist() == [
    [10, 11, 12, 13, 14, 15], [0] * 6, [16, 17, 18, 0, 0, 0],
  ]  # fmt: skip
  assert rows.position.tolist() == [
    [0, 1, 2, 3, 0, 1], [0] * 6, [0, 1, 2, 0, 0, 0],
  ]  # fmt: skip
  assert rows.segment.tolist() == [
    [1, 1, 1, 1, 2, 2], [0] * 6, [1, 1, 1, 0, 0, 0],
  ]  # fmt: skip
  assert (row.tolist(), start.tolist()) == ([0, 0, 2], [0, 4, 0])


LENGTHS = {
  "sentences": lambda shape: shape.lognormal(2.2, 0.4, (200, 256)).clip(3, 24),
  "passages": lambda shape: shape.lognormal(3.9, 0.5, (200, 256)).clip(5, 128),
  "long tail": lambda shape: shape.lognormal(3.9, 1, (200, 256)).clip(4, 512),
}


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("chunk_rows", [0, 64])
def test_the_rows_of_a_run_are_nearly_full(kind, chunk_rows):
  lengths = LENGTHS[kind](np.random.default_rng(0)).astype(int)
  plans = row_plans.choose(
    {"passage": lengths}, {"passage": lengths.max()}, 200,
    chunk_rows=chunk_rows, devices=2,
  )  # fmt: skip
  assert plans.last_resort is False
  (blocks,) = plans.plans[-1].values()
  assert all(block.length % 8 == 0 for block in blocks)
  for step in lengths:
    assert packing.pack(step, blocks) is not None
  # The rows must be enough for the heaviest step.
  heaviest = lengths.sum(axis=1).max()
  limit = 1.15 if chunk_rows else 1.06
  assert packing.tokens(blocks) < limit * heaviest
  computed = packing.tokens(blocks)
  assert plans.padding <= 1 - lengths.sum(axis=1).mean() / computed + 1e-9


def test_long_runs_whose_steps_differ_have_a_few_sizes():
  # About as long as the questions and passages of the collection "debian".
  random = np.random.default_rng(0)
  lengths = np.concatenate(
    [
      random.normal(13, 4, (250, 64)).clip(4, 32),
      random.lognormal(4.4, 0.37, (250, 64)).clip(20, 128),
    ],
    axis=1,
  ).astype(int)

  def plans(steps, **settings):
    first = {"passage": lengths[:steps]}
    return row_plans.choose(first, {"passage": 128}, steps, **settings)

  assert len(plans(100).plans) == 1
  many = plans(20_000)
  assert many.last_resort and 4 < len(many.plans) <= 13
  assert many.padding < 0.03
  sizes = [packing.work(plan["passage"]) for plan in many.plans]
  assert sizes == sorted(sizes)
  # The share is that of the plans that steps really use.
  computed = [
    next(
      packing.tokens(plan["passage"])
      for plan in many.plans
      if packing.pack(step, plan["passage"]) is not None
    )
    for step in lengths
  ]
  assert many.padding == pytest.approx(1 - lengths.sum() / np.sum(computed))
  # Where compilation takes minutes, fewer sizes pay.
  slow = plans(20_000, compilation=row_plans.compilation("tpu"))
  assert len(slow.plans) < len(many.plans)


def test_a_long_run_without_a_smaller_size_has_one():
  # Each device has one row, so no step needs fewer rows.
  plans = row_plans.choose(
    {"passage": np.full((200, 8), 100)}, {"passage": 128}, 10**6, devices=8
  )
  blocks, rare = (plan["passage"] for plan in plans.plans)
  assert plans.last_resort and len(blocks) == len(rare) == 1
  assert blocks[0].rows == rare[0].rows == 8


def test_the_chosen_sizes_cost_least():
  random = np.random.default_rng(0)
  costs = np.sort(random.integers(100, 200, 12))[::-1].copy()
  holds = random.integers(60, 200, 40) <= costs[:, None]
  holds[0] = True

  def total(chosen):
    each = np.where(holds[chosen], costs[chosen][:, None], 999)
    return each.min(axis=0).sum()

  for most in (1, 2, 3, 4):
    chosen = plan_sizes.choose(costs, holds, most, lambda _, __: True)
    assert 0 in chosen and len(chosen) == most
    assert costs[chosen].tolist() == sorted(costs[chosen])
    assert total(chosen) == min(
      total([0, *some])
      for some in itertools.combinations(range(1, 12), most - 1)
    )
  assert plan_sizes.choose(costs, holds, 4, lambda _, __: False) == [0]


def test_a_row_length_of_ones_own_is_used_or_refused():
  lengths = lengths_of(100)[None]

  def plans(row_length, multiple=8):
    return row_plans.choose(
      {"query": lengths}, {"query": 120}, 1,
      row_length=row_length, multiple=multiple,
    )  # fmt: skip

  assert [b.length for b in plans(200).plans[0]["query"]] == [200]
  with pytest.raises(
    ValueError, match=r"row_length is 100, .* 120 tokens.*120"
  ):
    plans(100)
  assert {b.length % 128 for b in plans(0, 128).plans[0]["query"]} == {0}
