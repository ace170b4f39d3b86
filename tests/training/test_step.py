"""Tests of the training step: exact on any mesh, safe with bad numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import random_batches
from random_batches import CONFIG, LOSSES, make_batch, make_losses

from mlir_jax import sharding
from mlir_jax.losses import registry
from mlir_jax.models import encoder
from mlir_jax.training import (
  build,
  chunking,
  compiled_step,
  optim,
  outputs,
  step,
)


def make_step(devices, *, losses=LOSSES, config=CONFIG, towers="tied", **adamw):
  """Returns a jitted step, a new state, and a function that places batches."""
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])
  adamw = {
    "b1": 0.9,
    "b2": 0.999,
    "eps": 1e-8,
    "weight_decay": 0.01,
    "clip_norm": 1.0,
  } | adamw
  optimizer = optim.make_optimizer(optax.constant_schedule(1e-3), **adamw)
  params = encoder.init_params(config, towers, jax.random.key(0))

  def init(params):
    return step.init_state(params, optimizer)

  shardings = sharding.state_shardings(
    jax.eval_shape(init, params), mesh, fsdp=devices > 1
  )
  state = jax.jit(init, out_shardings=shardings)(params)
  train_step = jax.jit(
    step.make_train_step(
      build.make_encode(
        config, random_batches.CONTRACT, mesh, shardings.params
      ),
      losses,
      optimizer,
      optax.constant_schedule(1e-3),
      0,
      sharding.replicate(mesh),
    ),
    out_shardings=(shardings, sharding.replicated(mesh)),
  )

  def place(batch):
    return sharding.place_batch(batch, mesh)

  return train_step, state, place


def test_losses_agree_between_1_and_8_devices_over_20_steps():
  followed = []
  for devices in (1, 8):
    train_step, state, place = make_step(devices)
    losses = []
    for number in range(20):
      state, metrics = train_step(state, place(make_batch(seed=number)))
      losses.append({k: v for k, v in metrics.items() if "loss/" in k})
    followed.append(jax.device_get(losses))
  for one, eight in zip(*followed, strict=True):
    for name, value in one.items():
      np.testing.assert_allclose(eight[name], value, rtol=1e-5, err_msg=name)


def test_the_gradient_is_that_of_the_weighted_sum_of_the_losses():
  """Pulling back the sum of gradients equals differentiating the total."""
  batch = make_batch()
  params = encoder.init_params(CONFIG, "tied", jax.random.key(0))
  encode = outputs.make_encode(
    chunking.whole(build.make_read(CONFIG, random_batches.CONTRACT))
  )

  def total(params):
    found = encode(params, batch, None)
    return sum(
      loss.weight * loss(found, batch, lambda x: x)[0]
      for loss in LOSSES.values()
      if loss.is_fed(batch.streams)
    )

  expected_total, expected = jax.jit(jax.value_and_grad(total))(params)
  found_total, found, metrics = jax.jit(
    lambda p: step.gradients(p, batch, encode, LOSSES, lambda x: x, None)
  )(params)
  np.testing.assert_allclose(found_total, expected_total, rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(b, a, atol=1e-5), expected, found
  )
  np.testing.assert_allclose(
    metrics["loss/ir"]
    + 0.5 * metrics["loss/semantic"]
    + 2 * metrics["loss/language"],
    found_total,
    rtol=1e-6,
  )


def test_each_text_is_encoded_in_its_role_and_gets_its_own_seed():
  """Checks that each text's vector is read from the text's place."""
  batch = make_batch(plan=random_batches.packed(random_batches.SPEC))

  def lengths_and_seeds(rows):
    mine = rows.segment[:, None] == np.arange(1, rows.texts + 1)[:, None]
    seeds = jnp.where(mine, rows.seeds[:, None] // 2**9, 0).max(axis=-1)
    return jnp.stack([mine.sum(axis=-1), seeds], axis=-1).astype(float)

  def encode(params, texts):
    del params
    return {
      group: [lengths_and_seeds(rows) for rows in blocks]
      for group, blocks in texts.items()
    }

  encode = outputs.make_encode(encode)
  found = encode(None, batch, jax.random.key(0))
  lengths = {name: np.asarray(x[..., 0]) for name, x in found.items()}
  # A missing passage has no tokens; all other texts have some.
  np.testing.assert_array_equal(
    lengths["passages"] > 0, batch.retrieval.passage_valid
  )
  for name in ("queries", "sentences", "monolingual"):
    assert (lengths[name] > 0).all()
  seeds = np.concatenate([np.ravel(x[..., 1]) for x in found.values()])
  seeds = seeds[seeds > 0]
  assert len(np.unique(seeds)) == len(seeds)
  again = encode(None, make_batch(), jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, found, again)
  assert step.padding(batch) < 0.4 < step.padding(make_batch())


def test_a_step_that_is_not_finite_changes_only_the_counters():
  losses = make_losses(ir={"temperature": 1e-38})
  train_step, state, place = make_step(1, losses=losses)
  batch = place(make_batch())
  after, metrics = train_step(state, batch)
  assert not np.isfinite(metrics["grad_norm/total"])
  jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
  jax.tree.map(np.testing.assert_array_equal, after.opt_state, state.opt_state)
  assert (int(after.step), int(after.skipped)) == (1, 1)
  again, _ = train_step(after, batch)
  assert int(again.skipped_in_a_row) == 2
  # A good step resets `skipped_in_a_row` and keeps `skipped`.
  good_step, _, _ = make_step(1)
  good, metrics = good_step(again, batch)
  assert (int(good.skipped), int(good.skipped_in_a_row)) == (2, 0)
  assert int(metrics["skipped"]) == 2


def test_dropout_is_a_function_of_seed_and_step():
  config = dataclasses.replace(CONFIG, hidden_dropout=0.5)
  train_step, state, place = make_step(1, config=config)
  batch = place(make_batch())
  _, first = train_step(state, batch)
  _, again = train_step(state, batch)
  _, later = train_step(state.replace(step=state.step + 1), batch)
  assert first["loss/total"] == again["loss/total"]
  assert first["loss/total"] != later["loss/total"]


def test_tied_towers_are_one_and_separate_ones_learn_apart():
  train_step, state, place = make_step(1, towers="separate")
  state, _ = train_step(state, place(make_batch()))
  query, passage = (
    state.params[f"{tower}_encoder"]["embeddings"]["position"]
    for tower in ("query", "passage")
  )
  assert np.abs(query - passage).max() > 1e-5
  _, state, _ = make_step(1)
  assert list(state.params) == ["encoder"]


def test_biases_and_norms_are_not_decayed():
  params = encoder.abstract_params(CONFIG, "tied")
  decayed = optim.is_decayed(params)["encoder"]
  assert decayed["embeddings"]["token"]
  assert not decayed["embeddings"]["norm"]["scale"]
  assert not decayed["embeddings"]["norm"]["bias"]


def test_the_learning_rate_warms_up_and_decays_to_its_end():
  schedule = optim.make_schedule(
    1e-3, warmup_steps=10, decay="cosine", final_fraction=0.1, steps=110
  )
  assert schedule(0) == 0
  np.testing.assert_allclose(schedule(5), 5e-4, rtol=1e-6)
  np.testing.assert_allclose(schedule(10), 1e-3, rtol=1e-6)
  np.testing.assert_allclose(schedule(60), 5.5e-4, rtol=1e-5)
  np.testing.assert_allclose(schedule(110), 1e-4, rtol=1e-5)


@pytest.mark.parametrize(
  "decay,halfway,end", [("linear", 5.5e-4, 1e-4), ("constant", 1e-3, 1e-3)]
)
def test_the_other_decays_end_where_they_say(decay, halfway, end):
  schedule = optim.make_schedule(
    1e-3, warmup_steps=10, decay=decay, final_fraction=0.1, steps=110
  )
  np.testing.assert_allclose(schedule(60), halfway, rtol=1e-5)
  np.testing.assert_allclose(schedule(110), end, rtol=1e-5)


def test_gradients_are_clipped_by_their_global_norm():
  params = {"a": jnp.zeros((2, 2)), "b": jnp.zeros((3,))}
  gradient = jax.tree.map(lambda x: x + 10.0, params)
  settings = {"b1": 0.0, "b2": 0.9, "eps": 1.0, "weight_decay": 0.0}

  def update(gradient, clip_norm):
    optimizer = optim.make_optimizer(
      optax.constant_schedule(1.0), clip_norm=clip_norm, **settings
    )
    return optimizer.update(gradient, optimizer.init(params), params)[0]

  norm = 10 * np.sqrt(7)
  scaled = jax.tree.map(lambda x: x / norm, gradient)
  for name, clipped in update(gradient, 1.0).items():
    np.testing.assert_allclose(clipped, update(scaled, 0.0)[name], rtol=1e-6)
    assert np.abs(clipped - update(gradient, 0.0)[name]).max() > 0.1


@pytest.mark.parametrize(
  "changes,sizes,message",
  [
    ({}, {"parallel": 0}, r"batch\.parallel is 0"),
    ({}, {"monolingual": 0}, r"batch\.monolingual is 0"),
    (
      dict.fromkeys(("parallel", "passages", "monolingual"), 0.0),
      {},
      "none of its third points",
    ),
  ],
)
def test_losses_that_cannot_be_fed_are_refused(changes, sizes, message):
  with pytest.raises(ValueError, match=message):
    registry.check(
      make_losses(masked_lm={"weight": 0.0}, language=changes),
      {
        "retrieval": 16,
        "hard_negatives": 0,
        "parallel": 8,
        "monolingual": 8,
        "masked": 0,
      }
      | sizes,
    )


def test_batches_of_equal_shapes_may_differ_in_their_structure():
  one, two = np.zeros(1), np.zeros(2)
  batches = [
    {"passage": (one, two), "query": (one,)},
    {"passage": (one,), "query": (two, one)},
  ]
  assert (
    len({str(list(map(np.shape, jax.tree.leaves(b)))) for b in batches}) == 1
  )
  step = compiled_step.CompiledStep(
    jax.jit(lambda state, batch: (state, len(batch["query"]))),
    one,
    batches,
    ahead=2,
    say=lambda line: None,
  )
  assert [int(step(one, batch)[1]) for batch in batches] == [1, 2]
