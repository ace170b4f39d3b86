"""Tests of masked language modelling together with the other losses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_batches as rb

from mlir_jax.losses import masked_lm as masked_lm_loss
from mlir_jax.losses import registry
from mlir_jax.models import encoder, masked_lm
from mlir_jax.models import rows as rows_lib
from mlir_jax.training import outputs

SIZES = {
  "retrieval": 16,
  "hard_negatives": 2,
  "parallel": 8,
  "monolingual": 8,
}
WEIGHT = rb.LOSSES["masked_lm"].weight
ALONE = dataclasses.replace(
  rb.MASKED_SPEC, retrieval=0, parallel=0, monolingual=0
)


def others_of(batch):
  return batch.replace(masked=None)


@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_the_loss_is_the_mean_over_the_places_there_are(chunks):
  random = np.random.default_rng(0)
  scores = random.normal(size=(4, 3, 7)).astype(np.float32)
  scores[..., 5:] = -np.inf  # Padding of the vocabulary.
  targets = random.integers(0, 5, (4, 3))
  valid = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]], bool)
  each, right = [], []
  for row, place in zip(*np.nonzero(valid), strict=True):
    values = scores[row, place].astype(np.float64)
    each.append(np.log(np.exp(values).sum()) - values[targets[row, place]])
    right.append(values.argmax() == targets[row, place])

  def mean(valid):
    return masked_lm_loss.masked_lm_loss(
      masked_lm_loss.masked_lm_sums(
        lambda x: x, scores, targets, valid, chunks=chunks
      )
    )

  loss, metrics = mean(valid)
  np.testing.assert_allclose(loss, np.mean(each), rtol=1e-6)
  np.testing.assert_allclose(metrics["accuracy"], np.mean(right), rtol=1e-6)
  assert metrics["targets"] == 6
  assert mean(np.zeros_like(valid))[0] == 0


def test_scores_are_held_for_a_part_of_the_texts_at_a_time(monkeypatch):
  config = dataclasses.replace(rb.CONFIG, vocab_size=20_000)
  params = rb.make_params(config, with_head=True)
  batch = rb.make_batch(ALONE)

  def memory(limit):
    monkeypatch.setattr(masked_lm_loss, "_SCORES", limit)
    compute, placed = rb.prepare_gradients(
      params, batch, config=config, losses=rb.LOSSES, devices=1,
      fsdp=False, chunk_rows=0, key=None,
    )  # fmt: skip
    compiled = compute.lower(*placed).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  scores = 16 * rb.TARGETS * config.padded_vocab_size * 4
  assert memory(1) < memory(2**40) - scores


def test_the_fewest_parts_are_taken_that_fit(monkeypatch):
  monkeypatch.setattr(masked_lm_loss, "_SCORES", 100)
  assert masked_lm_loss._parts(12, 100) == 1
  assert masked_lm_loss._parts(12, 101) == 2
  assert masked_lm_loss._parts(12, 450) == 6
  assert masked_lm_loss._parts(12, 10**9) == 12


@pytest.mark.parametrize("towers", ["tied", "separate"])
def test_its_gradient_is_added_to_that_of_the_other_losses(towers):
  with jax.enable_x64(True):
    config = rb.float64()
    params = rb.make_params(config, towers, with_head=True)
    spec = dataclasses.replace(rb.MASKED_SPEC, tied=towers == "tied")
    batch = rb.make_batch(spec, rb.packed(spec))
    total, gradient, metrics = rb.gradients(params, batch, config=config)
    total_of_others, gradient_of_others, _ = rb.gradients(
      params, others_of(batch), config=config
    )
    (masked,) = rb.make_batch(spec).masked  # One text in a row.

    def mean_loss(params):
      tower = params["encoder" if towers == "tied" else "passage_encoder"]
      rows = rows_lib.one_a_row(masked.ids, masked.segment > 0)
      (hidden,) = encoder.hidden_states(config, tower, [rows])
      states = hidden[np.arange(16)[:, None], masked.places]
      scores = masked_lm.logits(
        config, params["masked_lm"], tower["embeddings"]["token"], states
      )
      log_shares = jax.nn.log_softmax(scores)
      at_target = jnp.take_along_axis(
        log_shares, masked.targets[..., None], axis=-1
      )[..., 0]
      return -(at_target * masked.valid).sum() / masked.valid.sum()

    loss, own = jax.jit(jax.value_and_grad(mean_loss))(params)
    assert loss > 1
    np.testing.assert_allclose(metrics["loss/masked_lm"], loss, rtol=1e-12)
    np.testing.assert_allclose(
      total, total_of_others + WEIGHT * loss, rtol=1e-12
    )
    expected = jax.tree.map(
      lambda a, b: a + WEIGHT * b, gradient_of_others, own
    )
    rb.assert_same(gradient, expected)
    assert np.abs(own["masked_lm"]["token_bias"]).max() > 1e-3
    assert metrics["grad_norm/masked_lm"] > 0


def test_it_agrees_in_parts_on_8_devices_in_float64(monkeypatch):
  with jax.enable_x64(True):
    config = rb.float64()
    params = rb.make_params(config, "separate", with_head=True)
    spec = dataclasses.replace(ALONE, tied=False)
    batch = rb.make_batch(spec)
    one = rb.gradients(params, batch, config=config)
    monkeypatch.setattr(masked_lm_loss, "_SCORES", 1)
    again = rb.gradients(params, batch, config=config, devices=8, fsdp=True)
    rb.assert_same(again[1], one[1])
    np.testing.assert_allclose(again[0], one[0], rtol=1e-12)


def test_without_a_weight_it_is_measured_and_trains_nothing():
  batch = rb.make_batch(rb.MASKED_SPEC)
  params = rb.make_params(with_head=True)
  losses = rb.make_losses(masked_lm={"weight": 0.0})
  _, gradient, metrics = rb.gradients(params, batch, losses=losses)
  assert metrics["loss/masked_lm"] > 1
  assert not any(leaf.any() for leaf in jax.tree.leaves(gradient["masked_lm"]))
  _, expected, _ = rb.gradients(params, others_of(batch))
  rb.assert_same(gradient, expected, atol=1e-6)
  # If its loss is not finite, the others still train.
  params["masked_lm"]["token_bias"] *= np.nan
  total, gradient, metrics = rb.gradients(params, batch, losses=losses)
  assert np.isnan(metrics["loss/masked_lm"])
  assert np.isfinite(total)
  rb.assert_same(gradient["encoder"], expected["encoder"], atol=1e-6)


def test_alone_it_trains_a_backbone():
  params, batch = rb.make_params(with_head=True), rb.make_batch(ALONE)
  total, gradient, metrics = rb.gradients(params, batch)
  assert total == pytest.approx(WEIGHT * metrics["loss/masked_lm"])
  assert not any("/ir" in name for name in metrics)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
  assert np.abs(gradient["encoder"]["layer_0"]["output"]["kernel"]).max() > 0


def test_its_dropout_is_its_own():
  """Checks that all texts, masked or not, have different seeds."""
  batch = rb.make_batch(rb.MASKED_SPEC)
  texts = outputs.texts_of(batch, jax.random.key(3))
  seeds = np.concatenate(
    [
      np.asarray(rows.seeds)[(rows.segment > 0) & (rows.position == 0)]
      for blocks in texts.values()
      for rows in blocks
    ]
  )
  blocks = [*batch.texts["passage"], *batch.masked]
  assert len(seeds) == sum((block.number >= 0).sum() for block in blocks)
  assert len(np.unique(seeds)) == len(seeds)


def test_what_cannot_be_fed_is_refused():
  with pytest.raises(
    ValueError, match=r"masked_lm\.weight is 0\.7, but batch\.masked is 0"
  ):
    registry.check(rb.LOSSES, SIZES | {"masked": 0})


def test_it_may_be_the_only_loss():
  none = {name: {"weight": 0.0} for name in ("ir", "semantic", "language")}
  sizes = dict.fromkeys(SIZES, 0) | {"masked": 8}
  registry.check(rb.make_losses(**none), sizes)
  with pytest.raises(ValueError, match="nothing to learn"):
    registry.check(rb.make_losses(**none, masked_lm={"weight": 0.0}), sizes)
