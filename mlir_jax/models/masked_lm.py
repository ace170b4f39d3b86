"""The head for masked language modelling: hidden states to token scores.

It is the same in every family (Devlin et al. 2019): a dense layer, an
activation and a layer norm; then a dot product with each row of the encoder's
own token table, and a bias. In ModernBERT the dense layer and the norm have no
bias.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlir_jax.models import architecture, blocks


class _Transform(nn.Module):
  """The layers between the encoder and the token table."""

  config: architecture.EncoderConfig

  @nn.compact
  def __call__(self, hidden: jax.Array) -> jax.Array:
    config = self.config
    bias = config.architecture != "modernbert"
    hidden = blocks.dense(config, config.hidden_size, "dense", bias)(hidden)
    hidden = blocks.ACTIVATIONS[config.head_act](hidden)
    return blocks.layer_norm(config, "norm", bias)(hidden)


def init(config: architecture.EncoderConfig, key: jax.Array) -> dict:
  """Draws the head's parameters, float32; the bias over tokens is 0."""
  hidden = jnp.zeros((1, config.hidden_size), config.dtype)
  params = _Transform(config).init(key, hidden)["params"]
  return {**params, "token_bias": jnp.zeros(config.padded_vocab_size)}


def logits(
  config: architecture.EncoderConfig,
  params: Mapping,
  table: jax.Array,
  hidden: jax.Array,
) -> jax.Array:
  """Scores every token of the vocabulary.

  Args:
    config: The encoder's.
    params: The head's.
    table: The encoder's token table, [padded_vocab_size, hidden].
    hidden: [..., hidden], states of the last layer.

  Returns:
    [..., padded_vocab_size], at least float32; -inf beyond the vocabulary.
  """
  weights = {name: params[name] for name in params if name != "token_bias"}
  # Only with mutable=... does flax return a tuple.
  hidden = _Transform(config).apply(  # pyright: ignore[reportAssignmentType]
    {"params": weights}, hidden
  )
  # Sums are in float32. A bfloat16 model multiplies in bfloat16, as its layers
  # do, because exact float32 products over a vocabulary cost as much as the
  # encoder. The same is true backward, where one factor is float32.
  exact = hidden.dtype == config.wide_dtype
  scores = jnp.dot(
    hidden,
    table.astype(hidden.dtype).T,
    precision=jax.lax.Precision.HIGHEST if exact else None,
    preferred_element_type=config.wide_dtype,
  )
  real = jnp.arange(config.padded_vocab_size) < config.vocab_size
  return jnp.where(real, scores + params["token_bias"], -jnp.inf)
