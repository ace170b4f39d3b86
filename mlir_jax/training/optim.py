"""AdamW with warm-up, decay and clipping, from plain arguments."""

from typing import Any

import jax
import optax

DECAYS = ("cosine", "linear", "constant")


def make_schedule(
  learning_rate: float,
  *,
  warmup_steps: int,
  decay: str,
  final_fraction: float,
  steps: int,
) -> optax.Schedule:
  """Linear warm-up to `learning_rate`, then decay until the last step.

  Args:
    learning_rate: The peak.
    warmup_steps: Steps from 0 to the peak.
    decay: "cosine", "linear" or "constant".
    final_fraction: Of the peak, what is left at `steps`.
    steps: Steps of the whole run.

  Raises:
    ValueError: if the decay is unknown or the warm-up is longer than the run.
  """
  if decay not in DECAYS:
    raise ValueError(f"optim.decay is {decay!r}; use one of {DECAYS}.")
  if warmup_steps > steps:
    raise ValueError(
      f"optim.warmup_steps is {warmup_steps}, but train.steps is {steps}:"
      " the learning rate would never reach its peak."
    )
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
  """The decay mask: all but biases, layer-norm scales and other vectors."""
  return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def make_optimizer(
  schedule: optax.Schedule,
  *,
  b1: float,
  b2: float,
  eps: float,
  weight_decay: float,
  clip_norm: float,
) -> optax.GradientTransformation:
  """AdamW (Loshchilov & Hutter 2019) after clipping the global norm.

  Args:
    schedule: Step to learning rate.
    b1: Decay of the first moment.
    b2: Decay of the second moment.
    eps: Added to the denominator.
    weight_decay: Decoupled, of matrices and embeddings alone.
    clip_norm: The largest global gradient norm; 0 for no clipping.
  """
  adamw = optax.adamw(
    schedule,
    b1=b1,
    b2=b2,
    eps=eps,
    weight_decay=weight_decay,
    mask=is_decayed,
  )
  if not clip_norm:
    return adamw
  return optax.chain(optax.clip_by_global_norm(clip_norm), adamw)
