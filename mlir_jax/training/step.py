"""The training step: state, batch -> state, metrics. Read this first.

All losses are computed on the vectors of one global batch. The step is pure:
random numbers are a function of the seed and the step's number. A step whose
loss, gradient or update is not finite changes only the counters.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from mlir_jax.batches import batch as batch_lib
from mlir_jax.losses import base, matryoshka
from mlir_jax.training import outputs as outputs_lib

PyTree = Any


@flax.struct.dataclass
class TrainState:
  """All that training changes, which is all that resuming needs.

  Attributes:
    step: Steps taken, skipped ones included, int32. It is the number of the
      next batch.
    params: The towers' parameters, float32.
    opt_state: The optimizer's state.
    skipped: Steps skipped so far because of non-finite numbers, int32.
    skipped_in_a_row: Steps skipped since the last good step, int32.
  """

  step: jax.Array
  params: PyTree
  opt_state: PyTree
  skipped: jax.Array
  skipped_in_a_row: jax.Array


def init_state(
  params: PyTree, optimizer: optax.GradientTransformation
) -> TrainState:
  """Returns the state before the first step."""
  zero = jnp.zeros((), jnp.int32)
  return TrainState(
    step=zero,
    params=params,
    opt_state=optimizer.init(params),
    skipped=zero,
    skipped_in_a_row=zero,
  )


def gradients(
  params: PyTree,
  batch: batch_lib.Batch,
  encode: outputs_lib.Encode,
  losses: Mapping[str, base.Loss],
  replicate: base.Replicate,
  key: jax.Array | None,
  dimensions: Sequence[int] = (),
) -> tuple[jax.Array, PyTree, dict[str, jax.Array]]:
  """Computes the total loss, its gradient, and the metrics of one batch.

  Each loss is differentiated with respect to the outputs that it reads, which
  costs little compared with the encoder. The weighted sum is pulled back
  through the encoder once. This also gives the gradient norm of each loss.

  Args:
    params: All parameters, float32.
    batch: The reader's batch.
    encode: From `outputs.make_encode`.
    losses: Name to loss. Losses without their stream in the batch are omitted.
    replicate: A sharding constraint on the candidates of each loss.
    key: For dropout; None for no dropout.
    dimensions: See `matryoshka.compute`.

  Returns:
    total: The sum of weight x loss, a float32 scalar.
    gradient: Its gradient, with the structure of `params`.
    metrics: Scalars: "loss/NAME" and "grad_norm/NAME" of each loss (unweighted,
      with respect to the encoded texts), and the losses' own metrics as
      "NAME/METRIC".
  """
  outputs, pull_back = jax.vjp(lambda p: encode(p, batch, key), params)
  total: Any = 0.0
  total_gradient = jax.tree.map(jnp.zeros_like, outputs)
  metrics = {}
  for name, loss in losses.items():
    if not loss.is_fed(batch.streams):
      continue
    read = {
      output: outputs[output] for output in loss.reads if output in outputs
    }

    def compute(read, name=name, loss=loss):
      value, own = matryoshka.compute(loss, read, batch, replicate, dimensions)
      base.check_result(name, value, own)
      return value, own

    (value, own), gradient = jax.value_and_grad(compute, has_aux=True)(read)
    metrics[f"loss/{name}"] = value
    metrics[f"grad_norm/{name}"] = optax.tree.norm(
      optax.tree.cast(outputs_lib.encoded(gradient), value.dtype)
    )
    metrics |= {f"{name}/{metric}": value for metric, value in own.items()}
    if loss.weight:
      total += loss.weight * value
      total_gradient |= jax.tree.map(
        lambda t, g, w=loss.weight: t + w * g,
        {output: total_gradient[output] for output in read},
        gradient,
      )
  (gradient,) = pull_back(total_gradient)
  return total, gradient, {"loss/total": total} | metrics


def padding(batch: batch_lib.Batch) -> jax.Array:
  """Returns the share of padding in the batch's tokens."""
  groups = [*batch.texts.values(), batch.masked or ()]
  segments = [rows.segment for blocks in groups for rows in blocks]
  real: Any = sum((segment > 0).sum() for segment in segments)
  return 1 - real / sum(segment.size for segment in segments)


def make_train_step(
  encode: outputs_lib.Encode,
  losses: Mapping[str, base.Loss],
  optimizer: optax.GradientTransformationExtraArgs,
  schedule: optax.Schedule,
  seed: int,
  replicate: base.Replicate = lambda x: x,
  dimensions: Sequence[int] = (),
) -> Callable[
  [TrainState, batch_lib.Batch], tuple[TrainState, dict[str, jax.Array]]
]:
  """Makes the pure step; the caller jits it with its shardings.

  Args:
    encode: From `outputs.make_encode`.
    losses: Name to loss, from `registry.make`.
    optimizer: From `optim.make_optimizer`.
    schedule: The learning rate, for the log.
    seed: For dropout. The key of a step is folded from it and `state.step`.
    replicate: A sharding constraint on the candidates of each loss.
    dimensions: See `matryoshka.compute`.

  Returns:
    `train_step(state, batch) -> (state, metrics)`; the metrics are scalars.
  """

  def train_step(state, batch):
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    total, gradient, metrics = gradients(
      state.params, batch, encode, losses, replicate, key, dimensions
    )
    norm = optax.tree.norm(gradient)
    # If these are finite, the update is, too: see `optim.make_optimizer`.
    finite = jnp.isfinite(total) & jnp.isfinite(norm)
    updates, opt_state = optimizer.update(
      gradient, state.opt_state, state.params, finite=finite
    )
    skipped = jnp.where(finite, 0, 1).astype(jnp.int32)
    new_state = TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      opt_state=opt_state,
      skipped=state.skipped + skipped,
      skipped_in_a_row=(state.skipped_in_a_row + skipped) * skipped,
    )
    return new_state, metrics | {
      "grad_norm/total": norm,
      "learning_rate": schedule(state.step - state.skipped),
      "padding": padding(batch),
      "skipped": new_state.skipped,
      "skipped_in_a_row": new_state.skipped_in_a_row,
    }

  return train_step
