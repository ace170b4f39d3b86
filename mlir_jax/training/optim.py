"""AdamW with warm-up, decay and clipping, from plain arguments."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def make_schedule(
  learning_rate: float,
  *,
  warmup_steps: int,
  decay: str,
  final_fraction: float,
  steps: int,
) -> optax.Schedule:
  """Returns a linear warm-up to `learning_rate`, then a decay.

  Args:
    learning_rate: The peak.
    warmup_steps: Steps from 0 to the peak.
    decay: "cosine", "linear" or "constant".
    final_fraction: The share of the peak that is left at `steps`.
    steps: Steps of the whole run, at least `warmup_steps`; the decay ends here.
  """
  decay_steps = max(1, steps - warmup_steps)
  after = {
    "cosine": optax.cosine_decay_schedule(
      learning_rate, decay_steps, alpha=final_fraction
    ),
    "linear": optax.linear_schedule(
      learning_rate, learning_rate * final_fraction, decay_steps
    ),
    "constant": optax.constant_schedule(learning_rate),
  }[decay]
  warmup = optax.linear_schedule(0.0, learning_rate, max(1, warmup_steps))
  return optax.join_schedules([warmup, after], [warmup_steps])


def is_decayed(params: Any) -> Any:
  """Returns which parameters decay: not biases, norm scales, other vectors."""
  return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def make_optimizer(
  schedule: optax.Schedule,
  *,
  b1: float,
  b2: float,
  eps: float,
  weight_decay: float,
  clip_norm: float,
) -> optax.GradientTransformationExtraArgs:
  """Returns AdamW (Loshchilov & Hutter 2019) after clipping the global norm.

  It computes the same as `optax.chain(clip_by_global_norm, adamw)` and has the
  same state. But it reads and writes each array of a parameter once, in place.
  The chain keeps the clipped gradient, and it copies both moments if its
  results are selected afterwards. For a table of 250,000 tokens these copies
  cost more than the forward pass of a small batch.

  A gradient with a finite norm gives a finite update, so the update needs no
  check. The norm's square is a float32, so no slope is above 1.9e19. The first
  moment is not above it either: after the correction of its bias it is a
  weighted mean of slopes. The update is at most learning rate * 1.9e19 / eps +
  learning rate * weight decay * parameter. The ranges in `config.RANGES` keep
  this finite.

  Args:
    schedule: Step to learning rate.
    b1: Decay of the first moment.
    b2: Decay of the second moment.
    eps: Added to the denominator.
    weight_decay: Decoupled; for matrices and embeddings only.
    clip_norm: The largest global gradient norm; 0 for no clipping.

  Returns:
    An optimizer whose `update` also takes `finite`, bool [], True by default.
    With False, updates are 0 and the state stays the same for any gradient.
  """
  adamw = optax.adamw(
    schedule,
    b1=b1,
    b2=b2,
    eps=eps,
    weight_decay=weight_decay,
    mask=is_decayed,
  )
  # The state has the same form with and without clipping, so that a run can go
  # on from a checkpoint with another clip_norm.
  init = optax.chain(optax.identity(), adamw).init

  def update(gradient, state, params, *, finite=True):
    unclipped, (adam, decay, scheduled) = state

    def keep(new, old):
      return jnp.where(finite, new, old)

    factor = 1.0
    if clip_norm:
      factor = clip_norm / jnp.maximum(optax.tree.norm(gradient), clip_norm)

    # Select the moments here: the update then reads the new ones only.
    def first_moment(moment, slope):
      return keep(b1 * moment + (1 - b1) * (factor * slope), moment)

    def second_moment(moment, slope):
      return keep(b2 * moment + (1 - b2) * (factor * slope) ** 2, moment)

    mu = jax.tree.map(first_moment, adam.mu, gradient)
    nu = jax.tree.map(second_moment, adam.nu, gradient)
    count = optax.safe_increment(adam.count)
    rate = schedule(scheduled.count)

    def change(mu, nu, values, decayed):
      first, second, speed = (
        jnp.asarray(scalar, values.dtype)
        for scalar in (1 - b1**count, 1 - b2**count, rate)
      )
      direction = mu / first / (jnp.sqrt(nu / second) + eps)
      if decayed:
        direction += weight_decay * values
      return keep(-speed * direction, 0)

    changes = jax.tree.map(change, mu, nu, params, is_decayed(params))
    new = (
      adam._replace(count=keep(count, adam.count), mu=mu, nu=nu),
      decay,
      scheduled._replace(
        count=keep(optax.safe_increment(scheduled.count), scheduled.count)
      ),
    )
    return changes, (unclipped, new)

  # optax's type does not allow the argument `finite`.
  return optax.GradientTransformationExtraArgs(
    init,
    update,  # pyright: ignore[reportArgumentType]
  )
