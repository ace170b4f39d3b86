"""The pieces that every family of encoders is made of."""

import functools

import jax
import jax.numpy as jnp
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


class _Dropout(nn.Module):
  """Sets a share of the values to zero and scales up the others.

  Two values share a random word of 32 bits, since drawing them is most of
  dropout's cost; the rate is rounded to a multiple of 2**-16.
  """

  rate: float

  @nn.compact
  def __call__(self, values: jax.Array, deterministic: bool) -> jax.Array:
    threshold = round(self.rate * 2**16)
    if deterministic or not threshold:
      return values
    *leading, last = values.shape
    words = jax.random.bits(
      self.make_rng("dropout"), (*leading, -(-last // 2)), jnp.uint32
    )
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16)
    keep = halves.reshape(*leading, -1)[..., :last] >= threshold
    return jnp.where(keep, values / (1 - threshold / 2**16), 0)


def dropout(rate: float) -> nn.Module:
  """Dropout, called with (values, deterministic)."""
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
  deterministic: bool,
) -> jax.Array:
  """Scaled dot-product attention (Vaswani et al. 2017), inside a module.

  Args:
    config: The encoder's.
    queries: [texts, length, heads, size].
    keys: The same.
    values: The same.
    visible: bool, broadcast to [texts, heads, length, length]: whether a
      query sees a key.
    deterministic: False applies dropout to the weights.

  Returns:
    [texts, length, heads * size].
  """
  scores = jnp.einsum(
    "bqnd,bknd->bnqk", queries, keys, preferred_element_type=config.wide_dtype
  )
  # A finite minimum: a text that is all padding gets even weights, no NaN.
  minimum = jnp.finfo(scores.dtype).min
  scores = jnp.where(visible, scores * queries.shape[-1] ** -0.5, minimum)
  weights = nn.softmax(scores).astype(config.dtype)
  weights = dropout(config.attention_dropout)(weights, deterministic)
  attended = jnp.einsum("bnqk,bknd->bqnd", weights, values)
  return attended.reshape(*attended.shape[:2], -1)
