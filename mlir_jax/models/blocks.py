"""The pieces that every family of encoders is made of."""

import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mlir_jax.models import architecture


def _gelu(values: jax.Array) -> jax.Array:
  """The exact GELU, x Phi(x) (Hendrycks & Gimpel 2016, arXiv 1606.08415).

  By erf, in float32 or wider, as PyTorch does. nn.gelu's erfc is more exact
  where the result is almost 0, and on a CPU costs several times as much.
  """
  wide = values.astype(jnp.promote_types(values.dtype, jnp.float32))
  twice = wide * (1 + jax.lax.erf(wide * 0.5**0.5))
  return (0.5 * twice).astype(values.dtype)


ACTIVATIONS = {
  "gelu": _gelu,
  "gelu_python": _gelu,
  "gelu_new": functools.partial(nn.gelu, approximate=True),
  "gelu_pytorch_tanh": functools.partial(nn.gelu, approximate=True),
  "relu": nn.relu,
  "silu": nn.silu,
  "swish": nn.silu,
}


class _Dropout(nn.Module):
  """Sets a share of the values to zero and scales up the others.

  Which ones is a hash of the text's seed, of the module's place in the
  encoder, and of the value's place in the text. So a text loses the same
  values however it is padded, and whatever other texts, in whatever order, on
  whatever devices, it is encoded with; and nothing random is kept for the
  backward pass.
  """

  rate: float

  @nn.compact
  def __call__(self, values: jax.Array, seeds: jax.Array | None) -> jax.Array:
    if seeds is None or not self.rate:
      return values
    salt = zlib.crc32("/".join(self.path).encode())
    keep = random_words(seeds, salt, values.shape[1:]) >= np.uint32(
      round(self.rate * 2**32)
    )
    return jnp.where(keep, values / (1 - self.rate), 0)


def random_words(
  seeds: jax.Array, salt: int, shape: tuple[int, ...]
) -> jax.Array:
  """Words that look random: a hash of seed, salt and the indices in a text.

  A word of its own for each value costs less than what reads it, where
  jax.random's cost several times as much.

  Args:
    seeds: uint32 [texts].
    salt: Of the place in the encoder, below 2**32.
    shape: Of the values of one text.

  Returns:
    uint32 [texts, *shape]. They do not depend on how many there are.
  """
  *outer, size = shape
  rows = _scramble(_scramble(seeds) ^ _scramble(jnp.uint32(salt)))
  # Index by index, so that in each row the last one meets another word.
  for length in outer:
    places = _scramble(jnp.arange(length, dtype=jnp.uint32))
    rows = _scramble(rows[..., None] ^ places)
  places = _scramble(~jnp.arange(size, dtype=jnp.uint32))
  # All that is paid per value: one scramble, without the steps at its ends,
  # which the scrambled words and a threshold on the high bits do not need.
  words = (rows[..., None] ^ places) * np.uint32(0x7FEB352D)
  return (words ^ (words >> 15)) * np.uint32(0x846CA68B)


def _scramble(words: jax.Array) -> jax.Array:
  """A bijection of 32-bit words, "lowbias32" (Wellons 2018)."""
  words = (words ^ (words >> 16)) * np.uint32(0x7FEB352D)
  words = (words ^ (words >> 15)) * np.uint32(0x846CA68B)
  return words ^ (words >> 16)


def dropout(rate: float) -> nn.Module:
  """Dropout, called with (values, seeds): none where the seeds are None."""
  return _Dropout(rate)


class _Dense(nn.Module):
  """A dense layer over the last axis, computed on a matrix of all tokens.

  The product is that of nn.Dense. Its derivative by the kernel, of three axes
  instead of two, runs at half the speed or less on a CPU.
  """

  features: int
  use_bias: bool
  dtype: str
  deviation: float

  @nn.compact
  def __call__(self, values: jax.Array) -> jax.Array:
    *outer, size = values.shape
    normal = nn.initializers.normal(self.deviation)
    kernel = self.param("kernel", normal, (size, self.features))
    rows = values.reshape(-1, size).astype(self.dtype)
    rows = rows @ kernel.astype(self.dtype)
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, self.features)
      rows += bias.astype(self.dtype)
    return rows.reshape(*outer, self.features)


def dense(
  config: architecture.EncoderConfig,
  features: int,
  name: str,
  use_bias: bool = True,
) -> nn.Module:
  """A dense layer over the last axis."""
  return _Dense(
    features, use_bias, config.dtype, config.initializer_range, name=name
  )


def layer_norm(
  config: architecture.EncoderConfig, name: str, use_bias: bool = True
) -> nn.LayerNorm:
  """A layer norm, computed in float32; the dtype is that of the result."""
  return nn.LayerNorm(
    epsilon=config.layer_norm_eps,
    use_bias=use_bias,
    dtype=config.dtype,
    use_fast_variance=False,
    name=name,
  )


def table(
  module: nn.Module,
  config: architecture.EncoderConfig,
  name: str,
  rows: int,
  used: int | None = None,
) -> jax.Array:
  """A module's embedding table.

  Args:
    module: Whose parameter it is.
    config: The encoder's.
    name: The parameter's.
    rows: Of the table.
    used: Rows that are drawn; those behind them are 0.

  Returns:
    [rows, hidden] float32: casting a whole table would cost more than it
    saves.
  """
  normal = nn.initializers.normal(config.initializer_range)

  def init(key, shape):
    drawn = normal(key, (used or rows, config.hidden_size))
    return jnp.pad(drawn, ((0, rows - len(drawn)), (0, 0)))

  return module.param(name, init, (rows, config.hidden_size))


def token_table(
  module: nn.Module, config: architecture.EncoderConfig
) -> jax.Array:
  """The module's token table, padded: [padded_vocab_size, hidden]."""
  return table(
    module, config, "token", config.padded_vocab_size, config.vocab_size
  )


def attend(
  config: architecture.EncoderConfig,
  queries: jax.Array,
  keys: jax.Array,
  values: jax.Array,
  visible: jax.Array,
  seeds: jax.Array | None,
) -> jax.Array:
  """Scaled dot-product attention (Vaswani et al. 2017), inside a module.

  Args:
    config: The encoder's.
    queries: [texts, length, heads, size].
    keys: The same.
    values: The same.
    visible: bool, broadcast to [texts, heads, length, length]: whether a
      query sees a key.
    seeds: uint32 [texts], of the dropout on the weights; None for none.

  Returns:
    [texts, length, heads * size].
  """
  if config.attention == "cudnn":
    length = queries.shape[1]  # It takes no mask that is to be broadcast.
    visible = jnp.broadcast_to(visible, (len(visible), 1, length, length))
    attended = jax.nn.dot_product_attention(
      queries, keys, values, mask=visible, implementation="cudnn"
    )
    return attended.reshape(*attended.shape[:2], -1)
  scores = jnp.einsum(
    "bqnd,bknd->bnqk", queries, keys, preferred_element_type=config.wide_dtype
  )
  # A finite minimum: a text that is all padding gets even weights, no NaN.
  minimum = jnp.finfo(scores.dtype).min
  scores = jnp.where(visible, scores * queries.shape[-1] ** -0.5, minimum)
  weights = nn.softmax(scores).astype(config.dtype)
  weights = dropout(config.attention_dropout)(weights, seeds)
  attended = jnp.einsum("bnqk,bknd->bqnd", weights, values)
  return attended.reshape(*attended.shape[:2], -1)


def layer(config: architecture.EncoderConfig, module: type[nn.Module]) -> Any:
  """A class of layers, with what it keeps for the backward pass.

  Args:
    config: The encoder's; `remat` is "none", all is kept; "dots", the results
      of the dense layers alone; or "layer", nothing but what the layer reads.
    module: The class.
  """
  if config.remat == "none":
    return module
  policies = jax.checkpoint_policies
  return nn.remat(
    module,
    policy={
      "dots": policies.dots_with_no_batch_dims_saveable,
      "layer": policies.nothing_saveable,
    }[config.remat],
  )


def look_up(
  module: nn.Module,
  config: architecture.EncoderConfig,
  ids: jax.Array,
  token_vectors: jax.Array | None,
) -> jax.Array:
  """The tokens' rows of the module's table, unless they are given.

  Args:
    module: Whose parameter the table is.
    config: The encoder's.
    ids: [texts, length] int32.
    token_vectors: As `encoder.hidden_states` takes them.

  Returns:
    [texts, length, hidden] float32.
  """
  table = token_table(module, config)
  return table[ids] if token_vectors is None else token_vectors
