"""Tests that packed rows hold all texts and have little padding."""

import numpy as np
import pytest

from mlir_jax.batches import packing, row_plans
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


def test_it_is_first_fit_decreasing():
  lengths = lengths_of(300)
  number = packing.Unpacked(lengths, None).fill_rows(Block(300, 128, 99))
  rows = [lengths[row[row >= 0]].tolist() for row in number]
  assert sorted(row for row in rows if row) == first_fit_decreasing(
    lengths.tolist(), 128
  )


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
  lengths = np.random.default_rng(0).lognormal(3.9, 0.7, (400, 64))
  lengths = lengths.clip(5, 128).astype(int)

  def plans(steps):
    first = {"passage": lengths[:steps]}
    return row_plans.choose(first, {"passage": 128}, steps)

  assert len(plans(100).plans) == 1
  many = plans(100_000)
  assert many.last_resort and 2 < len(many.plans) <= 4
  assert many.padding < plans(400).padding < 0.12
  sizes = [packing.tokens(plan["passage"]) for plan in many.plans]
  assert sizes == sorted(sizes)


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
