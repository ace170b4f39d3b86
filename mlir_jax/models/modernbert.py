"""ModernBERT and mmBERT: rotary positions, sliding windows, gated layers.

Warner et al. 2024, arXiv 2412.13663; Marone et al. 2025, arXiv 2509.06888.
Layers normalize their input (pre-LN), and no layer has a bias.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlir_jax.models import architecture, attention, blocks, layers
from mlir_jax.models import rows as rows_lib

Texts = Sequence[rows_lib.Rows]


def _rotate(
  vectors: jax.Array, positions: jax.Array, longest: int, theta: float
) -> jax.Array:
  """Turns each head's vectors by angles that grow with the position.

  Su et al. 2021, arXiv 2104.09864, with pairs from both halves: component i and
  component size / 2 + i turn together, by position / theta ** (2 i / size).

  Args:
    vectors: [N, heads, size].
    positions: int32 [N].
    longest: A number above all positions.
    theta: The base of the angles.
  """
  size = vectors.shape[-1]
  wide = jnp.promote_types(vectors.dtype, jnp.float32)
  speeds = theta ** -(jnp.arange(0, size, 2, dtype=wide) / size)
  angles = jnp.arange(longest, dtype=wide)[:, None] * speeds
  cos, sin = jnp.cos(angles)[positions], jnp.sin(angles)[positions]
  cos, sin = cos[:, None], sin[:, None]
  first, second = jnp.split(vectors.astype(wide), 2, axis=-1)
  turned = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(turned, axis=-1).astype(vectors.dtype)


class _Attention(nn.Module):
  """Self-attention of each token to its text, or to a window in its text."""

  config: architecture.EncoderConfig
  sliding: bool

  @nn.compact
  def __call__(self, hidden: jax.Array, texts: Texts) -> jax.Array:
    config = self.config
    fused = blocks.dense(config, 3 * config.hidden_size, "qkv", use_bias=False)
    queries, keys, values = (
      part.reshape(len(hidden), config.num_heads, -1)
      for part in jnp.split(fused(hidden), 3, axis=-1)
    )
    window, theta = None, config.full_rope_theta
    if self.sliding:
      window, theta = config.attention_window // 2, config.sliding_rope_theta
    positions = rows_lib.flat(texts, "position")
    longest = max(block.ids.shape[1] for block in texts)
    attended = attention.attend(
      config,
      _rotate(queries, positions, longest, theta),
      _rotate(keys, positions, longest, theta),
      values,
      texts,
      window,
    )
    output = blocks.dense(config, config.hidden_size, "output", use_bias=False)
    return blocks.drop(config.attention_dropout, output(attended), texts)


class _FeedForward(nn.Module):
  """A feed-forward layer with a linear gate (Shazeer 2020, GeGLU)."""

  config: architecture.EncoderConfig

  @nn.compact
  def __call__(self, hidden: jax.Array, texts: Texts) -> jax.Array:
    config = self.config
    inner = blocks.dense(
      config, 2 * config.intermediate_size, "intermediate", use_bias=False
    )
    inner, gate = jnp.split(inner(hidden), 2, axis=-1)
    gated = blocks.ACTIVATIONS[config.hidden_act](inner) * gate
    gated = blocks.drop(config.hidden_dropout, gated, texts)
    return blocks.dense(config, config.hidden_size, "output", use_bias=False)(
      gated
    )


class _Layer(nn.Module):
  """Attention and feed-forward; each reads normalized states."""

  config: architecture.EncoderConfig
  number: int

  @nn.compact
  def __call__(self, hidden: jax.Array, texts: Texts) -> jax.Array:
    config = self.config
    sliding = config.layer_types[self.number] == architecture.SLIDING
    read = hidden
    if self.number:  # The first layer's input is already normalized.
      read = blocks.layer_norm(config, "attention_norm", use_bias=False)(hidden)
    hidden += _Attention(config, sliding, name="attention")(read, texts)
    read = blocks.layer_norm(config, "feed_forward_norm", use_bias=False)
    feed_forward = _FeedForward(config, name="feed_forward")
    return hidden + feed_forward(read(hidden), texts)


class _Embeddings(nn.Module):
  """Token embeddings, normalized; positions come with the attention."""

  config: architecture.EncoderConfig

  @nn.compact
  def __call__(
    self, texts: Texts, token_vectors: jax.Array | None
  ) -> jax.Array:
    hidden = blocks.look_up(self, self.config, texts, token_vectors)
    hidden = blocks.layer_norm(self.config, "norm", use_bias=False)(hidden)
    return blocks.drop(self.config.hidden_dropout, hidden, texts)


class ModernBert(nn.Module):
  """The encoder of the family modernbert."""

  config: architecture.EncoderConfig

  @nn.compact
  def __call__(
    self, texts: Texts, token_vectors: jax.Array | None
  ) -> jax.Array:
    """Returns the states of all tokens [N, hidden]; see `hidden_states`."""
    embeddings = _Embeddings(self.config, name="embeddings")
    hidden = embeddings(texts, token_vectors)

    def fields(number):
      return {"config": self.config, "number": number}

    hidden = layers.run(self, self.config, _Layer, fields, hidden, texts)
    return blocks.layer_norm(self.config, "norm", use_bias=False)(hidden)
