"""The parts that all families of encoders share."""

import functools
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mlir_jax.models import architecture
from mlir_jax.models import rows as rows_lib


def _gelu(values: jax.Array) -> jax.Array:
  """The exact GELU, x Phi(x) (Hendrycks & Gimpel 2016, arXiv 1606.08415).

  Computed with erf, in float32 or wider, as in PyTorch. nn.gelu uses erfc,
  which is more exact where the result is almost 0, but on a CPU it costs
  several times as much.
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


# The collection of the salts of dropout, for layers that run in a scan.
SALTS = "salts"


class _Dropout(nn.Module):
  """Sets a share of the values to zero and scales up the others.

  A hash decides which ones: of the text's seed, of the module's place in the
  encoder, and of the value's place in the text. So a text loses the same
  values in any row, next to any other texts, in any order and on any devices.
  The backward pass computes the hash again, so nothing random is stored.
  """

  rate: float

  @nn.compact
  def __call__(
    self,
    values: jax.Array,
    seeds: jax.Array | None,
    places: Sequence[jax.Array],
  ) -> jax.Array:
    """Drops some of the values.

    Args:
      values: Any shape.
      seeds: uint32, the seed of each value's text, broadcast to the values.
        None for no dropout.
      places: The indices of each value in its text, broadcast to the values.
    """
    if seeds is None or not self.rate:
      return values
    own = salt(self.path)
    # In a scan, several layers share this module, and each brings its salt.
    if self.has_variable(SALTS, "salt") or self.is_mutable_collection(SALTS):
      own = self.variable(SALTS, "salt", lambda: jnp.uint32(own)).value
    keep = random_words(seeds, own, places) >= np.uint32(
      round(self.rate * 2**32)
    )
    return jnp.where(keep, values / (1 - self.rate), 0)


def salt(path: Sequence[str]) -> int:
  """Returns the salt of dropout at a place in the encoder, below 2**32."""
  return zlib.crc32("/".join(path).encode())


def random_words(
  seeds: jax.Array, salt: int | jax.Array, places: Sequence[jax.Array]
) -> jax.Array:
  """Returns pseudorandom words: a hash of seed, salt and indices.

  To compute a word for each value costs less than the operation that uses the
  words. With jax.random it costs several times as much.

  Args:
    seeds: uint32.
    salt: From `salt`; a number, or a uint32 scalar.
    places: Indices. They and the seeds are broadcast against each other. Only
      the last should make the shape large, because it costs least.

  Returns:
    uint32, of the broadcast shape.
  """
  *outer, last = (jnp.asarray(place).astype(jnp.uint32) for place in places)
  words = _scramble(_scramble(seeds) ^ _scramble(jnp.uint32(salt)))
  # Scramble after each index, so that different indices give different words.
  for place in outer:
    words = _scramble(words ^ _scramble(place))
  # Only the last two lines run for each value. They are a scramble without its
  # first and last step: the words are already scrambled, and the caller only
  # compares their high bits with a threshold.
  words = (words ^ _scramble(~last)) * np.uint32(0x7FEB352D)
  return (words ^ (words >> 15)) * np.uint32(0x846CA68B)


def text_seeds(seed: jax.Array, numbers: jax.Array) -> jax.Array:
  """Returns a seed for each text, from a common seed and the texts' numbers.

  Args:
    seed: uint32.
    numbers: int32, any shape.

  Returns:
    uint32, of the same shape. Different numbers get different seeds.
  """
  return _scramble(seed ^ _scramble(numbers.astype(jnp.uint32)))


def _scramble(words: jax.Array) -> jax.Array:
  """The bijection "lowbias32" of 32-bit words (Wellons 2018)."""
  words = (words ^ (words >> 16)) * np.uint32(0x7FEB352D)
  words = (words ^ (words >> 15)) * np.uint32(0x846CA68B)
  return words ^ (words >> 16)


def dropout(rate: float) -> nn.Module:
  """Returns a module that drops a share of values, see `_Dropout`."""
  return _Dropout(rate)


def drop(
  rate: float, states: jax.Array, rows: Sequence[rows_lib.Rows]
) -> jax.Array:
  """Applies dropout to all tokens' states [N, size]; call it in a module."""
  seeds, places = None, ()
  if rows[0].seeds is not None:
    seeds = rows_lib.flat(rows, "seeds")[:, None]
    position = rows_lib.flat(rows, "position")[:, None]
    places = position, jnp.arange(states.shape[-1])
  return dropout(rate)(states, seeds, places)


class _Dense(nn.Module):
  """A dense layer over the last axis, computed on a matrix of all tokens.

  The product is that of nn.Dense. But for values of three axes, nn.Dense's
  derivative by the kernel runs at half the speed or less on a CPU.
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
  """A layer norm, computed in float32; the result has the config's dtype."""
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
  """Returns a module's embedding table.

  Args:
    module: The module that has the parameter.
    config: The encoder's.
    name: The parameter's.
    rows: The number of rows of the table.
    used: The number of rows that are drawn; the rows after them are 0.

  Returns:
    [rows, hidden] float32. To cast a whole table would cost more than it saves.
  """
  normal = nn.initializers.normal(config.initializer_range)

  def init(key, shape):
    drawn = normal(key, (used or rows, config.hidden_size))
    return jnp.pad(drawn, ((0, rows - len(drawn)), (0, 0)))

  return module.param(name, init, (rows, config.hidden_size))


def token_table(
  module: nn.Module, config: architecture.EncoderConfig
) -> jax.Array:
  """Returns the module's token table, [padded_vocab_size, hidden]."""
  return table(
    module, config, "token", config.padded_vocab_size, config.vocab_size
  )


def look_up(
  module: nn.Module,
  config: architecture.EncoderConfig,
  rows: Sequence[rows_lib.Rows],
  token_vectors: jax.Array | None,
) -> jax.Array:
  """Returns the tokens' rows of the module's table, unless they are given.

  Args:
    module: The module that has the table.
    config: The encoder's.
    rows: Rows with N tokens together.
    token_vectors: As in `encoder.hidden_states`.

  Returns:
    [N, hidden] float32.
  """
  table = token_table(module, config)
  if token_vectors is None:
    return table[rows_lib.flat(rows, "ids")]
  return token_vectors
