"""Masked language modelling in the training step, beside the other losses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_step

from mlir_jax.mesh import sharding
from mlir_jax.models import encoder, masked_lm
from mlir_jax.training import build, losses, step

SIZES = test_step.SIZES | {"masked": 8}
WEIGHT = 0.7
SETTINGS = dataclasses.replace(test_step.SETTINGS, masked_lm_weight=WEIGHT)


def make_batch():
  random = np.random.default_rng(1)
  batch = test_step.make_batch()
  tokens = test_step.make_batch(1)["monolingual"]["tokens"]
  batch["masked"] = {
    "tokens": tokens,
    "positions": random.integers(0, 2, (8, 3)).astype(np.int32),
    "targets": random.integers(5, 200, (8, 3)).astype(np.int32),
    "valid": np.arange(3) < random.integers(0, 4, (8, 1)),
  }
  return batch


def make_params(config, towers="tied"):
  params = encoder.init_params(config, towers, jax.random.key(0), True)
  return jax.tree.map(lambda x: x.astype(config.dtype), params)


def gradients(config, params, batch, settings=SETTINGS, devices=1, key=None):
  """(total, gradient, metrics) on a mesh of so many devices."""
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])
  sizes = {name: SIZES[name] for name in batch}
  rows = {name: np.arange(size) for name, size in sizes.items()}

  @jax.jit
  def compute(params, batch):
    return step.gradients(
      params,
      batch,
      test_step.make_embed(config),
      settings,
      sharding.replicate(mesh),
      key,
      build.make_masked_lm(config, devices),
    )

  placed = sharding.place_batch(batch, mesh, rows, sizes)
  return jax.device_get(compute(params, placed))


def assert_same(ours, theirs, atol=1e-12):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol),
    ours,
    theirs,
  )


@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_the_loss_is_the_mean_over_the_places_there_are(chunks):
  random = np.random.default_rng(0)
  scores = random.normal(size=(4, 3, 7)).astype(np.float32)
  scores[..., 5:] = -np.inf  # Beyond the vocabulary.
  targets = random.integers(0, 5, (4, 3))
  valid = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]], bool)
  each, right = [], []
  for row, place in zip(*np.nonzero(valid), strict=True):
    values = scores[row, place].astype(np.float64)
    each.append(np.log(np.exp(values).sum()) - values[targets[row, place]])
    right.append(values.argmax() == targets[row, place])
  loss, metrics = losses.masked_lm_loss(
    lambda x: x, scores, targets, valid, chunks=chunks
  )
  np.testing.assert_allclose(loss, np.mean(each), rtol=1e-6)
  np.testing.assert_allclose(metrics["accuracy"], np.mean(right), rtol=1e-6)
  assert metrics["targets"] == 6
  nothing, _ = losses.masked_lm_loss(
    lambda x: x, scores, targets, np.zeros_like(valid), chunks=chunks
  )
  assert nothing == 0


def test_scores_are_held_for_a_part_of_the_texts_at_a_time(monkeypatch):
  config = dataclasses.replace(test_step.CONFIG, vocab_size=20_000)
  abstract = encoder.abstract_params(config, "tied", True)
  batch = {"masked": make_batch()["masked"]}

  def memory(limit):
    monkeypatch.setattr(build, "_SCORES", limit)
    compute = functools.partial(
      step.gradients,
      embed=test_step.make_embed(config),
      settings=SETTINGS,
      replicate=lambda x: x,
      key=None,
      masked_lm=build.make_masked_lm(config),
    )
    compiled = jax.jit(compute).lower(abstract, batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  scores = 8 * 3 * config.padded_vocab_size * 4
  assert memory(1) < memory(2**40) - scores


def test_the_fewest_parts_are_taken_that_fit(monkeypatch):
  monkeypatch.setattr(build, "_SCORES", 100)
  assert build._parts(12, 100) == 1
  assert build._parts(12, 101) == 2
  assert build._parts(12, 450) == 6
  assert build._parts(12, 10**9) == 12


@pytest.mark.parametrize("towers", ["tied", "separate"])
def test_its_gradient_is_added_to_that_of_the_other_losses(towers):
  with jax.enable_x64(True):
    config = dataclasses.replace(test_step.CONFIG, dtype="float64")
    params = make_params(config, towers)
    batch = make_batch()
    total, gradient, metrics = gradients(config, params, batch)
    others = {name: batch[name] for name in test_step.SIZES}
    total_of_others, gradient_of_others, _ = gradients(config, params, others)

    def mean_loss(params):
      tower = params["encoder" if towers == "tied" else "passage_encoder"]
      masked = batch["masked"]
      hidden = encoder.hidden_states(config, tower, **masked["tokens"])
      states = hidden[np.arange(8)[:, None], masked["positions"]]
      scores = masked_lm.logits(
        config, params["masked_lm"], tower["embeddings"]["token"], states
      )
      log_shares = jax.nn.log_softmax(scores)
      at_target = jnp.take_along_axis(
        log_shares, masked["targets"][..., None], axis=-1
      )[..., 0]
      return -(at_target * masked["valid"]).sum() / masked["valid"].sum()

    loss, own = jax.value_and_grad(mean_loss)(params)
    assert loss > 1
    np.testing.assert_allclose(metrics["loss/masked_lm"], loss, rtol=1e-12)
    np.testing.assert_allclose(
      total, total_of_others + WEIGHT * loss, rtol=1e-12
    )
    expected = jax.tree.map(
      lambda a, b: a + WEIGHT * b, gradient_of_others, own
    )
    assert_same(gradient, expected)
    assert np.abs(own["masked_lm"]["token_bias"]).max() > 1e-3
    assert metrics["grad_norm/masked_lm"] > 0


@pytest.mark.parametrize("limit", [2**40, 1], ids=["whole", "in parts"])
def test_it_agrees_between_1_and_8_devices_in_float64(limit, monkeypatch):
  with jax.enable_x64(True):
    config = dataclasses.replace(test_step.CONFIG, dtype="float64")
    params = make_params(config, "separate")
    batch = {"masked": make_batch()["masked"]}
    one = gradients(config, params, batch)
    monkeypatch.setattr(build, "_SCORES", limit)
    for devices in (1, 8):
      again = gradients(config, params, batch, devices=devices)
      assert_same(again[1], one[1])
      np.testing.assert_allclose(again[0], one[0], rtol=1e-12)


def test_without_a_weight_it_is_measured_and_trains_nothing():
  config, batch = test_step.CONFIG, make_batch()
  params = make_params(config)
  settings = dataclasses.replace(SETTINGS, masked_lm_weight=0.0)
  _, gradient, metrics = gradients(config, params, batch, settings)
  assert metrics["loss/masked_lm"] > 1
  assert not any(leaf.any() for leaf in jax.tree.leaves(gradient["masked_lm"]))
  others = {name: batch[name] for name in test_step.SIZES}
  _, expected, _ = gradients(config, params, others)
  assert_same(gradient, expected, atol=1e-6)
  # Nor does it harm a step.
  params["masked_lm"]["token_bias"] *= np.nan
  total, gradient, metrics = gradients(config, params, batch, settings)
  assert np.isnan(metrics["loss/masked_lm"])
  assert np.isfinite(total)
  assert_same(gradient["encoder"], expected["encoder"], atol=1e-6)


def test_alone_it_trains_a_backbone():
  config = test_step.CONFIG
  params, batch = make_params(config), {"masked": make_batch()["masked"]}
  total, gradient, metrics = gradients(config, params, batch)
  assert total == pytest.approx(WEIGHT * metrics["loss/masked_lm"])
  assert not any("/ir" in name for name in metrics)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
  assert np.abs(gradient["encoder"]["layer_0"]["output"]["kernel"]).max() > 0


def test_its_dropout_is_its_own():
  config = dataclasses.replace(
    test_step.CONFIG, hidden_dropout=0.5, attention_dropout=0.5
  )
  params, batch = make_params(config), make_batch()
  whole = build.make_masked_lm(config)
  keys = []

  def read(params, batch, key):
    keys.append(key)
    return whole.read(params, batch, key)

  def embed(params, tower, tokens, key=None):
    keys.append(key)
    return test_step.make_embed(config)(params, tower, tokens, key)

  step.gradients(
    params,
    batch,
    embed,
    SETTINGS,
    lambda x: x,
    jax.random.key(3),
    whole._replace(read=read),
  )
  assert len(keys) == 5
  assert len({tuple(np.asarray(jax.random.key_data(key))) for key in keys}) == 5


@pytest.mark.parametrize(
  ("weight", "rows", "named"),
  [
    (1.0, 0, r"loss\.masked_lm\.weight is 1\.0, but batch\.masked is 0"),
    (-1.0, 8, r"loss\.masked_lm\.weight is -1\.0"),
  ],
)
def test_what_cannot_be_fed_is_refused(weight, rows, named):
  settings = dataclasses.replace(SETTINGS, masked_lm_weight=weight)
  with pytest.raises(ValueError, match=named):
    step.check_losses(settings, SIZES | {"masked": rows})


def test_it_may_be_the_only_loss():
  settings = dataclasses.replace(
    SETTINGS, ir_weight=0.0, semantic_weight=0.0, language_weight=0.0
  )
  none = dict.fromkeys(test_step.SIZES, 0)
  step.check_losses(settings, none | {"masked": 8})
  with pytest.raises(ValueError, match="nothing to learn"):
    step.check_losses(
      dataclasses.replace(settings, masked_lm_weight=0.0),
      none | {"masked": 8},
    )
