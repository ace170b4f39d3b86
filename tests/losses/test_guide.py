"""A guide masks what its cosines say, on any devices and in any chunks."""

import dataclasses

import jax
import numpy as np
import pytest
import random_batches as rb

from mlir_jax import sharding
from mlir_jax.losses import guide, ir

PAIRS, COLUMNS, WIDTH, STUDENT = 16, 3, 6, 5
MARGINS = [(0.0, 0.0), (0.2, 0.0), (0.0, 0.3), (0.1, 0.3)]


def draw():
  """Draws a guide's vectors, float16, most positives close to their query."""
  random = np.random.default_rng(0)
  queries = random.normal(size=(PAIRS, WIDTH))
  passages = random.normal(size=(PAIRS, COLUMNS, WIDTH))
  passages[:, 0] += 2 * queries
  passages[0, 0] -= 4 * queries[0]  # This positive has a cosine below 0.
  passages[::4, 2] = 0  # Padding.
  return queries.astype(np.float16), passages.astype(np.float16)


def cosine(a, b):
  a, b = a.astype(np.float64), b.astype(np.float64)
  return a @ b / (np.linalg.norm(a) * np.linalg.norm(b) or 1)


def by_definition(queries, passages, absolute, relative):
  """Returns the mask of a loop over all pairs, bool [B, B, C]."""
  mask = np.zeros((PAIRS, PAIRS, COLUMNS), bool)
  for i, query in enumerate(queries):
    positive = cosine(query, passages[i, 0])
    for row, column in np.ndindex(PAIRS, COLUMNS):
      found = cosine(query, passages[row, column])
      limits = positive - absolute, positive - abs(positive) * relative
      if (row, column) != (i, 0):
        assert all(abs(found - limit) > 1e-6 for limit in limits)
        mask[i, row, column] = any(found > limit for limit in limits)
  return mask


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("absolute, relative", MARGINS)
def test_a_pair_is_masked_by_its_cosine_and_that_of_the_positive(
  absolute, relative, devices
):
  vectors = draw()
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])

  @jax.jit
  def masked(queries, passages):
    return guide.false_negatives(
      queries,
      passages,
      absolute_margin=absolute,
      relative_margin=relative,
      replicate=sharding.replicate(mesh),
    )

  found = np.array(masked(*sharding.place_batch(vectors, mesh)))
  found = found.reshape(PAIRS, PAIRS, COLUMNS)
  found[np.arange(PAIRS), np.arange(PAIRS), 0] = False  # It has no meaning.
  expected = by_definition(*vectors, absolute, relative)
  np.testing.assert_array_equal(found, expected)
  others = expected.sum() - expected[0].sum()
  assert 5 < others < 0.5 * expected.size


def reference(scores, mask, valid):
  """Returns -log softmax at the positives, both ways; scores [B, B, C]."""
  forward, backward = [], []
  for i in range(PAIRS):
    own = scores[i, i, 0]
    exps = [
      np.exp(scores[i, row, column])
      for row, column in np.ndindex(PAIRS, COLUMNS)
      if (row, column) == (i, 0)
      or (valid[row, column] and not mask[i, row, column])
    ]
    forward.append(np.log(sum(exps)) - own)
    exps = [
      np.exp(scores[j, i, 0])
      for j in range(PAIRS)
      if j == i or not mask[j, i, 0]
    ]
    backward.append(np.log(sum(exps)) - own)
  return (np.mean(forward) + np.mean(backward)) / 2


def test_the_loss_leaves_out_what_the_guide_masks_and_counts_it():
  random = np.random.default_rng(1)
  vectors = draw()
  queries = random.normal(size=(PAIRS, STUDENT)).astype(np.float32)
  passages = random.normal(size=(PAIRS, COLUMNS, STUDENT)).astype(np.float32)
  valid = np.abs(vectors[1]).sum(axis=-1) > 0
  batch = rb.make_batch(dataclasses.replace(rb.SPEC, hard_negatives=2))
  retrieval = rb.all_different(batch.retrieval).replace(
    passage_valid=valid, query_guide=vectors[0], passage_guide=vectors[1]
  )
  settings = {
    "temperature": 0.5,
    "symmetric": True,
    "guide_absolute_margin": 0.2,
  }
  outputs = {"queries": queries, "passages": passages}

  def compute(**more):
    return ir.IrLoss(**settings, **more)(
      outputs, batch.replace(retrieval=retrieval), lambda x: x
    )

  loss, metrics = compute(guide="made")
  mask = by_definition(*vectors, 0.2, 0.0)
  scores = np.einsum("id,rcd->irc", queries, passages) / 0.5
  np.testing.assert_allclose(loss, reference(scores, mask, valid), rtol=1e-5)
  assert metrics["masked"] == 0
  assert metrics["masked_by_guide"] == (mask & valid).sum()
  plain, metrics = compute()  # Without a guide, its vectors change nothing.
  nothing = np.zeros_like(mask)
  np.testing.assert_allclose(
    plain, reference(scores, nothing, valid), rtol=1e-5
  )
  assert "masked_by_guide" not in metrics
  retrieval = retrieval.replace(query_guide=None)
  with pytest.raises(ValueError, match="no vectors of the guide 'made'"):
    compute(guide="made")


def test_exactly_the_passage_that_the_guide_prefers_is_masked():
  """The guide scores one false negative above its positive, no other."""
  queries = np.eye(PAIRS, dtype=np.float16)
  passages = np.zeros((PAIRS, 1, PAIRS), np.float16)
  passages[:, 0] = np.eye(PAIRS) + 0.3
  passages[5, 0, 3] = 3  # The positive of 5 answers question 3, too.
  found = guide.false_negatives(queries, passages)
  assert np.argwhere(found).tolist() == [[3, 5]]


@pytest.mark.slow
def test_chunked_and_sharded_steps_are_the_plain_one():
  random = np.random.default_rng(2)
  losses = rb.make_losses(ir={"guide": "made", "guide_relative_margin": 0.1})
  results = []
  for devices, chunk in ((1, 0), (8, 0), (8, 8)):
    batch = rb.make_batch(plan=rb.packed(rb.SPEC))
    retrieval = batch.retrieval
    shape = retrieval.passage.shape
    random = np.random.default_rng(2)
    guided = retrieval.replace(
      query_guide=random.normal(size=(shape[0], 4)).astype(np.float16),
      passage_guide=random.normal(size=(*shape, 4)).astype(np.float16),
    )
    with jax.enable_x64(True):
      results.append(
        rb.gradients(
          rb.make_params(rb.float64()),
          batch.replace(retrieval=guided),
          config=rb.float64(),
          losses=losses,
          devices=devices,
          fsdp=devices > 1,
          chunk_rows=chunk,
        )
      )
  plain, *others = results
  assert 0 < plain[2]["ir/masked_by_guide"] < shape[0] * np.prod(shape)
  for other in others:
    rb.assert_same(other, plain, atol=1e-10)
