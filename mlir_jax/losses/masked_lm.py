"""Masked language modelling in the passage tower.

It adapts a backbone to languages, alone or together with the other losses. It
is not a part of Hu et al. (2023).
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from mlir_jax.batches import batch as batch_lib
from mlir_jax.losses import base

Array = jax.Array

# Scores of tokens that are made at a time: 256 MB in float32. A device holds a
# few such arrays.
_SCORES = 2**26


@flax.struct.dataclass
class Vocabulary:
  """The output "vocabulary": it scores all tokens at an encoded place.

  Attributes:
    params: {"head": the head's parameters, "table": the passage tower's token
      table, float32 [V, D]}.
    score: (params, states [..., D]) -> scores of all tokens [..., V], float32
      or wider.
    over_rows: Takes a function (params, rows) -> sums over these rows. Returns
      a function that adds up the sums over the rows of all devices.
  """

  params: base.PyTree
  score: Callable[[base.PyTree, Array], Array] = flax.struct.field(
    pytree_node=False
  )
  over_rows: Callable[[Callable], Callable] = flax.struct.field(
    pytree_node=False
  )


@dataclasses.dataclass(frozen=True)
class MaskedLmLoss(base.Loss):
  """Masked language modelling; see `masked_lm_sums`."""

  # w_mlm; it needs batch.masked.
  weight: float = base.setting(0.0, "[0, 1e6]")

  title = "masked language modelling"
  stream = "masked"
  reads = ("masked", "vocabulary")
  unit_vectors = False
  nested = False

  def __call__(
    self,
    outputs: base.Outputs,
    batch: batch_lib.Batch,
    replicate: base.Replicate,
  ) -> tuple[Array, base.Metrics]:
    """See `base.Loss`; the metrics are those of `masked_lm_loss`."""
    vocabulary = outputs["vocabulary"]
    size = len(vocabulary.params["table"])
    assert batch.masked is not None  # See `stream`.
    known = [
      {"targets": block.targets, "valid": block.valid} for block in batch.masked
    ]

    def sums(params, blocks):
      score = functools.partial(vocabulary.score, params)
      added = []
      for states, block in zip(*blocks, strict=True):
        rows, places = block["targets"].shape
        added.append(
          masked_lm_sums(
            score, states, block["targets"], block["valid"],
            chunks=_parts(rows, rows * places * size),
          )
        )  # fmt: skip
      return jax.tree.map(lambda *each: sum(each), *added)

    add_up = vocabulary.over_rows(sums)
    return masked_lm_loss(add_up(vocabulary.params, (outputs["masked"], known)))


def _parts(rows: int, scores: int) -> int:
  """Returns the fewest equal parts of rows with at most `_SCORES` scores."""
  parts = [n for n in range(1, rows + 1) if rows % n == 0]
  return next((n for n in parts if scores <= n * _SCORES), rows)


def masked_lm_sums(
  score: Callable[[Array], Array],
  states: Array,
  targets: Array,
  valid: Array,
  *,
  chunks: int = 1,
) -> dict[str, Array]:
  """Sums -log softmax at the true tokens (Devlin et al. 2019).

  Scores over a vocabulary are larger than anything else in a step. So they are
  made for a part of the texts at a time, forward, and again backward.

  Args:
    score: States [m, K, D] -> scores of all tokens [m, K, V], float32 or
      wider.
    states: The states at the masked places, [M, K, D].
    targets: The true tokens, int32 [M, K].
    valid: bool [M, K]; False where a text has fewer masked places.
    chunks: The number of parts of the texts; it divides M.

  Returns:
    Sums over the valid places: "loss"; "right", the places where no token has a
    higher score than the true one; and "targets", the number of valid places.
  """

  @jax.checkpoint
  def sums(part):
    states, targets, valid = part
    scores = score(states)
    at_target = jnp.take_along_axis(scores, targets[..., None], axis=-1)
    at_target = at_target[..., 0]
    losses = jax.nn.logsumexp(scores, axis=-1) - at_target
    right = at_target >= scores.max(axis=-1)
    return {
      "loss": jnp.where(valid, losses, 0).sum(),
      "right": jnp.where(valid, right, 0).sum().astype(losses.dtype),
      "targets": valid.sum().astype(losses.dtype),
    }

  parts = jax.tree.map(
    lambda x: x.reshape(chunks, -1, *x.shape[1:]), (states, targets, valid)
  )
  return jax.tree.map(jnp.sum, jax.lax.map(sums, parts))


def masked_lm_loss(sums: dict[str, Array]) -> tuple[Array, base.Metrics]:
  """Returns the mean loss from the sums of `masked_lm_sums`.

  Returns:
    The loss, 0 without any target, and the metrics "accuracy", a share, and
    "targets", the number of targets.
  """
  count = jnp.maximum(sums["targets"], 1)
  return sums["loss"] / count, {
    "accuracy": sums["right"] / count,
    "targets": sums["targets"],
  }
