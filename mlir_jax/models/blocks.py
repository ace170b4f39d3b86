"""The pieces that every family of encoders is made of."""

import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mlir_jax.models import config as config_lib

ACTIVATIONS = {
  "gelu": functools.partial(nn.gelu, approximate=False),
  "gelu_python": functools.partial(nn.gelu, approximate=False),
  "gelu_new": functools.partial(nn.gelu, approximate=True),
  "gelu_pytorch_tanh": functools.partial(nn.gelu, approximate=True),
  "relu": nn.relu,
  "silu": nn.silu,
  "swish": nn.silu,
}


# More tokens than texts have.
_LONGEST = 2**13


class _Dropout(nn.Module):
  """Sets a share of the values to zero and scales up the others.

  Which ones is a hash of the text's seed, of the module's place in the
  encoder, and of the value's place in the text. So a text loses the same
  values however it is padded, and whatever other texts, in whatever order, on
  whatever devices, it is encoded with; and nothing random is kept for the
  backward pass. The rate is rounded to a multiple of 2**-16.
  """

  rate: float

  @nn.compact
  def __call__(self, values: jax.Array, seeds: jax.Array | None) -> jax.Array:
    threshold = round(self.rate * 2**16)
    if seeds is None or not threshold:
      return values
    salt = zlib.crc32("/".join(self.path).encode())
    keep = _random_bits(seeds, salt, values.shape[1:])
    keep = keep >= np.uint32(threshold << 16)
    return jnp.where(keep, values / (1 - threshold / 2**16), 0)


def _random_bits(
  seeds: jax.Array, salt: int, shape: tuple[int, ...]
) -> jax.Array:
  """uint32 [texts, *shape]: a hash of seed, salt and place.

  The places of a matrix of attention weights are numbered as if texts had
  `_LONGEST` tokens, those of hidden states row by row: neither depends on the
  padding.
  """
  strides = {2: (shape[-1], 1), 3: (_LONGEST**2, _LONGEST, 1)}[len(shape)]
  place = sum(
    jax.lax.broadcasted_iota(jnp.uint32, (1, *shape), axis)
    * np.uint32(stride % 2**32)
    for axis, stride in enumerate(strides, start=1)
  )
  texts = seeds.reshape(-1, *[1] * len(shape))
  first = _scramble(texts ^ np.uint32(salt))
  second = _scramble(first + np.uint32(0x9E3779B9))
  # Two words of each text go in, so that no two share their places' order.
  bits = (place ^ first) * np.uint32(0x9E3779B1)
  bits = (bits ^ (bits >> 15) ^ second) * np.uint32(0x85EBCA77)
  return bits ^ (bits >> 13)


def _scramble(words: jax.Array) -> jax.Array:
  """The 32-bit bijection that MurmurHash3 ends with (Appleby 2011)."""
  words = (words ^ (words >> 16)) * np.uint32(0x85EBCA6B)
  words = (words ^ (words >> 13)) * np.uint32(0xC2B2AE35)
  return words ^ (words >> 16)


def dropout(rate: float) -> nn.Module:
  """Dropout, called with (values, seeds): none where the seeds are None."""
  return _Dropout(rate)


def dense(
  config: config_lib.EncoderConfig,
  features: int,
  name: str,
  use_bias: bool = True,
) -> nn.Dense:
  """A dense layer over the last axis."""
  return nn.Dense(
    features,
    use_bias=use_bias,
    dtype=config.dtype,
    kernel_init=nn.initializers.normal(config.initializer_range),
    name=name,
  )


def layer_norm(
  config: config_lib.EncoderConfig, name: str, use_bias: bool = True
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
  config: config_lib.EncoderConfig,
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
  module: nn.Module, config: config_lib.EncoderConfig
) -> jax.Array:
  """The module's token table, padded: [padded_vocab_size, hidden]."""
  return table(
    module, config, "token", config.padded_vocab_size, config.vocab_size
  )


def attend(
  config: config_lib.EncoderConfig,
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


def layer(config: config_lib.EncoderConfig, module: type[nn.Module]) -> Any:
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
  config: config_lib.EncoderConfig,
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
