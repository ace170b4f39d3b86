"""ModernBERT and mmBERT: rotary positions, sliding windows, gated layers.

Warner et al. 2024, arXiv 2412.13663; Marone et al. 2025, arXiv 2509.06888.
Layers normalize what they read (pre-LN), and nothing has a bias.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlir_jax.models import architecture, blocks


def _rotate(vectors: jax.Array, theta: float) -> jax.Array:
  """Turns each head's vectors by angles that grow with the position.

  Su et al. 2021, arXiv 2104.09864, with the halves as pairs: component i
  turns with component size / 2 + i, by position / theta ** (2 i / size).

  Args:
    vectors: [texts, length, heads, size].
    theta: The base of the angles.
  """
  length, size = vectors.shape[1], vectors.shape[-1]
  wide = jnp.promote_types(vectors.dtype, jnp.float32)
  speeds = theta ** -(jnp.arange(0, size, 2, dtype=wide) / size)
  angles = jnp.arange(length, dtype=wide)[:, None, None] * speeds
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  first, second = jnp.split(vectors.astype(wide), 2, axis=-1)
  turned = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(turned, axis=-1).astype(vectors.dtype)


class _Attention(nn.Module):
  """Self-attention to all tokens, or to those in a window around each."""

  config: architecture.EncoderConfig
  sliding: bool

  @nn.compact
  def __call__(
    self, hidden: jax.Array, mask: jax.Array, seeds: jax.Array | None
  ) -> jax.Array:
    config = self.config
    fused = blocks.dense(config, 3 * config.hidden_size, "qkv", use_bias=False)
    queries, keys, values = (
      part.reshape(*hidden.shape[:-1], config.num_heads, -1)
      for part in jnp.split(fused(hidden), 3, axis=-1)
    )
    visible = mask[:, None, None, :]
    theta = config.full_rope_theta
    if self.sliding:
      theta = config.sliding_rope_theta
      places = jnp.arange(hidden.shape[1])
      distance = jnp.abs(places[:, None] - places)
      visible &= distance <= config.attention_window // 2
    attended = blocks.attend(
      config,
      _rotate(queries, theta),
      _rotate(keys, theta),
      values,
      visible,
      seeds,
    )
    output = blocks.dense(config, config.hidden_size, "output", use_bias=False)
    return blocks.dropout(config.attention_dropout)(output(attended), seeds)


class _FeedForward(nn.Module):
  """A feed-forward layer with a linear gate (Shazeer 2020, GeGLU)."""

  config: architecture.EncoderConfig

  @nn.compact
  def __call__(self, hidden: jax.Array, seeds: jax.Array | None) -> jax.Array:
    config = self.config
    inner = blocks.dense(
      config, 2 * config.intermediate_size, "intermediate", use_bias=False
    )
    inner, gate = jnp.split(inner(hidden), 2, axis=-1)
    gated = blocks.ACTIVATIONS[config.hidden_act](inner) * gate
    gated = blocks.dropout(config.hidden_dropout)(gated, seeds)
    return blocks.dense(config, config.hidden_size, "output", use_bias=False)(
      gated
    )


class _Layer(nn.Module):
  """Attention and feed-forward; each reads normalized states."""

  config: architecture.EncoderConfig
  number: int

  @nn.compact
  def __call__(
    self, hidden: jax.Array, mask: jax.Array, seeds: jax.Array | None
  ) -> jax.Array:
    config = self.config
    sliding = config.layer_types[self.number] == architecture.SLIDING
    attention = _Attention(config, sliding, name="attention")
    read = hidden
    if self.number:  # The first layer's states come normalized.
      read = blocks.layer_norm(config, "attention_norm", use_bias=False)(hidden)
    hidden += attention(read, mask, seeds)
    read = blocks.layer_norm(config, "feed_forward_norm", use_bias=False)
    return hidden + _FeedForward(config, name="feed_forward")(
      read(hidden), seeds
    )


class _Embeddings(nn.Module):
  """Token embeddings, normalized; positions come with the attention."""

  config: architecture.EncoderConfig

  @nn.compact
  def __call__(
    self,
    ids: jax.Array,
    seeds: jax.Array | None,
    token_vectors: jax.Array | None,
  ) -> jax.Array:
    hidden = blocks.look_up(self, self.config, ids, token_vectors)
    hidden = blocks.layer_norm(self.config, "norm", use_bias=False)(hidden)
    return blocks.dropout(self.config.hidden_dropout)(hidden, seeds)


class ModernBert(nn.Module):
  """The encoder of the family modernbert."""

  config: architecture.EncoderConfig

  @nn.compact
  def __call__(
    self,
    ids: jax.Array,
    mask: jax.Array,
    seeds: jax.Array | None,
    token_vectors: jax.Array | None,
  ) -> jax.Array:
    """See `encoder.hidden_states`."""
    hidden = _Embeddings(self.config, name="embeddings")(
      ids, seeds, token_vectors
    )
    layer = blocks.layer(self.config, _Layer)
    for i in range(self.config.num_layers):
      hidden = layer(self.config, i, name=f"layer_{i}")(hidden, mask, seeds)
    return blocks.layer_norm(self.config, "norm", use_bias=False)(hidden)
