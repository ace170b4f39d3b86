"""Attention: each token reads the other tokens of its text.

On TPUs, too, it is two products with a softmax between them. JAX's fused
kernels for TPUs (jax.experimental.pallas.ops.tpu, JAX 0.10) are not used. They
do not work in a `jax.shard_map` that checks how results vary over devices, as
that of `sharding.over_rows` does. A head of 64 values takes twice its size in
their arrays. So in rows of 128 tokens they move as many bytes as the products;
in rows of 512 they would move about a third.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlir_jax.models import architecture, blocks
from mlir_jax.models import rows as rows_lib


def attend(
  config: architecture.EncoderConfig,
  queries: jax.Array,
  keys: jax.Array,
  values: jax.Array,
  rows: Sequence[rows_lib.Rows],
  window: int | None = None,
) -> jax.Array:
  """Scaled dot-product attention (Vaswani et al. 2017); call it in a module.

  A token sees the tokens of its own text. The cost per token grows with the
  length of the rows, so a plan uses shorter rows for short texts where that
  costs less.

  Args:
    config: The encoder's.
    queries: [N, heads, size], of all tokens of the rows.
    keys: Like `queries`.
    values: Like `queries`.
    rows: The rows of these tokens.
    window: The number of tokens that a token sees on each side; None for the
      whole text.

  Returns:
    [N, heads * size].
  """
  dropout = blocks.dropout(config.attention_dropout)  # One module, so one salt.
  attended = []
  split = [rows_lib.split(rows, each) for each in (queries, keys, values)]
  for number, block in enumerate(rows):
    read = split[0][number], split[1][number], split[2][number]
    visible = block.segment[:, :, None] == block.segment[:, None, :]
    if window is not None:
      distance = block.position[:, :, None] - block.position[:, None, :]
      visible &= jnp.abs(distance) <= window
    visible = visible[:, None]
    if config.attention == "cudnn":
      found = jax.nn.dot_product_attention(
        *read, mask=visible, implementation="cudnn"
      )
    else:
      found = _attend_plainly(config, *read, visible, block, dropout)
    attended.append(found.reshape(block.ids.size, -1))
  return attended[0] if len(attended) == 1 else jnp.concatenate(attended)


def _attend_plainly(
  config: architecture.EncoderConfig,
  queries: jax.Array,
  keys: jax.Array,
  values: jax.Array,
  visible: jax.Array,
  block: rows_lib.Rows,
  dropout: nn.Module,
) -> jax.Array:
  """Computes attention in a block, [R, L, heads, size], by two products."""
  scores = jnp.einsum(
    "bqnd,bknd->bnqk", queries, keys, preferred_element_type=config.wide_dtype
  )
  minimum = jnp.finfo(scores.dtype).min
  scores = jnp.where(visible, scores * queries.shape[-1] ** -0.5, minimum)
  weights = nn.softmax(scores).astype(config.dtype)
  seeds, places = None, ()
  if block.seeds is not None:
    seeds = block.seeds[:, None, :, None]
    position = block.position[:, None]
    heads = jnp.arange(queries.shape[2])[:, None, None]
    places = heads, position[..., :, None], position[..., None, :]
  weights = dropout(weights, seeds, places)
  return jnp.einsum("bnqk,bknd->bqnd", weights, values)
