"""The optimizer computes optax's AdamW, with fewer passes over memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlir_jax import config
from mlir_jax.training import optim

SETTINGS = {"b1": 0.9, "b2": 0.99, "eps": 1e-6, "weight_decay": 0.1}
SCHEDULE = optim.make_schedule(
  0.1, warmup_steps=2, decay="cosine", final_fraction=0.1, steps=9
)


def draw(seed):
  random = np.random.default_rng(seed)
  return {
    "table": random.normal(size=(50, 8)),
    "norm": {"scale": random.normal(size=8)},
  }


def make(clip_norm):
  return optim.make_optimizer(SCHEDULE, clip_norm=clip_norm, **SETTINGS)


@pytest.mark.parametrize("clip_norm", [0, 1.0, 1e3])
def test_it_is_adamw_after_clipping(clip_norm):
  adamw = optax.adamw(SCHEDULE, mask=optim.is_decayed, **SETTINGS)
  clip = optax.clip_by_global_norm(clip_norm)
  adamw = optax.chain(clip if clip_norm else optax.identity(), adamw)

  with jax.enable_x64(True):

    def train(optimizer):
      params = jax.tree.map(jnp.asarray, draw(0))
      state = optimizer.init(params)
      for step in range(1, 6):
        updates, state = optimizer.update(draw(step), state, params)
        params = optax.apply_updates(params, updates)
      return params, state

    found, expected = train(make(clip_norm)), train(adamw)
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for ours, theirs in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("clip_norm", [0, 1.0])
def test_a_gradient_that_is_not_finite_changes_nothing(clip_norm):
  optimizer = make(clip_norm)
  params = jax.tree.map(jnp.float32, draw(0))
  _, state = optimizer.update(draw(1), optimizer.init(params), params)
  gradient = draw(2)
  gradient["table"][3, 3] = np.nan
  updates, new_state = optimizer.update(gradient, state, params, finite=False)
  for ours, before in zip(
    jax.tree.leaves(new_state), jax.tree.leaves(state), strict=True
  ):
    np.testing.assert_array_equal(ours, before)
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize("clip_norm", [0, 1e6])
@pytest.mark.parametrize("decay", [0.0, 0.999999])
def test_a_finite_gradient_norm_gives_a_finite_update(clip_norm, decay):
  """At the ends of the ranges that a config may use."""

  def ends(name):
    return map(float, config.RANGES[f"optim.{name}"].strip("[]").split(","))

  _, learning_rate = ends("learning_rate")
  eps, _ = ends("eps")
  optimizer = optim.make_optimizer(
    lambda _: learning_rate,
    b1=decay,
    b2=0.0,
    eps=eps,
    weight_decay=0.0,
    clip_norm=clip_norm,
  )
  params = {"table": jnp.zeros((2, 2), jnp.float32)}
  state = optimizer.init(params)
  # The largest slope, and small ones, whose squares are 0 in float32.
  for slope in (1.8e19, 1e-30, 1e-30, -1.8e19):
    gradient = {"table": jnp.array([[slope, 0], [0, 0]], jnp.float32)}
    assert np.isfinite(optax.tree.norm(gradient))
    updates, state = optimizer.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    for leaf in jax.tree.leaves((params, state)):
      assert np.isfinite(leaf).all()


def test_a_step_makes_no_copy_of_a_table():
  """There is no copy of the clipped gradient or of a moment."""
  params = {"table": jax.ShapeDtypeStruct((1000, 64), jnp.float32)}
  optimizer = make(1.0)
  state = jax.eval_shape(optimizer.init, params)

  def step(params, state, gradient):
    finite = jnp.isfinite(optax.tree.norm(gradient))
    updates, state = optimizer.update(gradient, state, params, finite=finite)
    return optax.apply_updates(params, updates), state

  compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params)
  temporaries = compiled.compile().memory_analysis().temp_size_in_bytes
  assert temporaries < 1000 * 64 * 4 / 4
