"""The encoder: token ids to hidden states to one vector per text."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

TOWERS = ("tied", "separate")

# The token table's rows are padded to a multiple of this, so that any usual
# mesh divides them: a sharding constraint that cannot divide replicates
# without a word (jax#26946), and 250,002 pieces do not divide by 4.
_VOCAB_MULTIPLE = 256

_ACTIVATIONS = {
  "gelu": functools.partial(nn.gelu, approximate=False),
  "gelu_new": functools.partial(nn.gelu, approximate=True),
  "gelu_pytorch_tanh": functools.partial(nn.gelu, approximate=True),
  "relu": nn.relu,
}

# float64 is there for tests of arithmetic.
_DTYPES = ("float32", "bfloat16", "float64")

# Per family (Hugging Face's model_type): our field to its name in config.json.
_HF_NAMES = {
  "bert": {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "layer_norm_eps": "layer_norm_eps",
    "hidden_act": "hidden_act",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "pad_token_id": "pad_token_id",
    "initializer_range": "initializer_range",
  },
}

# Per family: what else config.json may say, and the one value we compute.
_HF_FIXED = {
  "bert": {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
    "quantization_config": None,
    "auto_map": None,  # Code of its own.
  },
}


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """The shape of an encoder. Defaults are those of Hugging Face's BERT.

  Attributes:
    vocab_size: Tokens of the tokenizer.
    hidden_size: Width of the hidden states and of the vectors.
    num_layers: Transformer layers.
    num_heads: Attention heads; they divide hidden_size.
    intermediate_size: Width of the feed-forward layers.
    max_positions: The longest text in tokens.
    type_vocab_size: Rows of the token type table; only row 0 is used.
    layer_norm_eps: Added to the variance in layer norms.
    hidden_act: Of the feed-forward layers; "gelu" is the exact one.
    hidden_dropout: Rate on hidden states, in training.
    attention_dropout: Rate on attention weights, in training.
    pad_token_id: The tokenizer's, for config.json; padding is told by masks.
    initializer_range: Standard deviation of initial weights.
    dtype: Of activations: "float32" or "bfloat16". Parameters, layer norms,
      softmax and pooling are float32 in either.
    family: Hugging Face's model_type.
  """

  vocab_size: int
  hidden_size: int
  num_layers: int
  num_heads: int
  intermediate_size: int
  max_positions: int
  type_vocab_size: int = 2
  layer_norm_eps: float = 1e-12
  hidden_act: str = "gelu"
  hidden_dropout: float = 0.1
  attention_dropout: float = 0.1
  pad_token_id: int = 0
  initializer_range: float = 0.02
  dtype: str = "float32"
  family: str = "bert"

  def __post_init__(self):
    for name in (
      *("vocab_size", "hidden_size", "num_layers", "num_heads"),
      *("intermediate_size", "max_positions", "type_vocab_size"),
    ):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} is {getattr(self, name)}; it must be >= 1.")
    if self.hidden_size % self.num_heads:
      raise ValueError(
        f"hidden_size is {self.hidden_size}, which num_heads,"
        f" {self.num_heads}, does not divide."
      )
    for name in ("hidden_dropout", "attention_dropout"):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(
          f"{name} is {getattr(self, name)}; it must be in [0, 1)."
        )
    for name, known in (
      ("hidden_act", tuple(_ACTIVATIONS)),
      ("dtype", _DTYPES),
      ("family", tuple(_HF_NAMES)),
    ):
      if getattr(self, name) not in known:
        raise ValueError(
          f"{name} is {getattr(self, name)!r}; use one of {known}."
        )

  @property
  def padded_vocab_size(self) -> int:
    """Rows of the token table: vocab_size, up to a multiple of 256."""
    return -(-self.vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE

  @property
  def wide_dtype(self) -> jnp.dtype:
    """Of layer norms, softmax and pooling: at least float32."""
    return jnp.promote_types(self.dtype, jnp.float32)

  @classmethod
  def from_hf(cls, hf: Mapping, dtype: str = "float32") -> "EncoderConfig":
    """Reads a Hugging Face config.

    Args:
      hf: What config.json holds.
      dtype: Of activations.

    Raises:
      ValueError: naming every field that is missing or cannot be honoured.
    """
    family = hf.get("model_type")
    if family not in _HF_NAMES:
      raise ValueError(
        f"model_type is {family!r}; encoders of {tuple(_HF_NAMES)} can be read."
      )
    problems = [
      f"{name} is {hf[name]!r}; only {value!r} can be honoured"
      for name, value in _HF_FIXED[family].items()
      if hf.get(name) not in (None, value)
    ]
    values = {}
    for field in dataclasses.fields(cls):
      if name := _HF_NAMES[family].get(field.name):
        if hf.get(name) is not None:
          values[field.name] = hf[name]
        elif field.default is dataclasses.MISSING:
          problems.append(f"{name} is missing")
    if problems:
      raise ValueError(f"{'; '.join(problems)}.")
    return cls(**values, dtype=dtype, family=family)

  def to_hf(self) -> dict:
    """The Hugging Face config: what `from_hf` reads back."""
    names = _HF_NAMES[self.family]
    return {"model_type": self.family} | {
      theirs: getattr(self, ours) for ours, theirs in names.items()
    }


def check_lengths(config: EncoderConfig, max_lengths: Mapping[str, int]):
  """Checks that the encoder has a position for every token.

  Args:
    config: The encoder's.
    max_lengths: Role to its maximum length in tokens.

  Raises:
    ValueError: naming each role whose texts can be longer.
  """
  long = {
    f"encoding.{role}.max_length": length
    for role, length in max_lengths.items()
    if length > config.max_positions
  }
  if long:
    raise ValueError(
      f"The encoder has {config.max_positions} positions, fewer than {long}:"
      " lower these."
    )


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


def _dense(config: EncoderConfig, features: int, name: str) -> nn.Dense:
  return nn.Dense(
    features,
    dtype=config.dtype,
    kernel_init=nn.initializers.normal(config.initializer_range),
    name=name,
  )


def _layer_norm(config: EncoderConfig, name: str) -> nn.LayerNorm:
  # Computed in float32; the dtype is that of the result.
  return nn.LayerNorm(
    epsilon=config.layer_norm_eps,
    dtype=config.dtype,
    use_fast_variance=False,
    name=name,
  )


class _Embeddings(nn.Module):
  """Token, position and type embeddings, summed and normalized."""

  config: EncoderConfig

  @nn.compact
  def __call__(self, ids: jax.Array, deterministic: bool) -> jax.Array:
    config = self.config
    normal = nn.initializers.normal(config.initializer_range)

    def padded_normal(key, shape):
      drawn = normal(key, (config.vocab_size, shape[1]))
      return jnp.pad(drawn, ((0, shape[0] - config.vocab_size), (0, 0)))

    def table(name, rows, init=normal):
      return self.param(name, init, (rows, config.hidden_size))

    # Gathered in float32: casting a whole table would cost more than it saves.
    hidden = (
      table("token", config.padded_vocab_size, padded_normal)[ids]
      + table("position", config.max_positions)[: ids.shape[1]]
      + table("type", config.type_vocab_size)[0]
    )
    hidden = _layer_norm(config, "norm")(hidden)
    return _Dropout(config.hidden_dropout)(hidden, deterministic)


class _Attention(nn.Module):
  """Self-attention of every token to the tokens that are not padding."""

  config: EncoderConfig

  @nn.compact
  def __call__(
    self, hidden: jax.Array, mask: jax.Array, deterministic: bool
  ) -> jax.Array:
    config = self.config
    size = config.hidden_size // config.num_heads

    def heads(name):
      projected = _dense(config, config.hidden_size, name)(hidden)
      return projected.reshape(*hidden.shape[:-1], config.num_heads, size)

    queries, keys, values = heads("query"), heads("key"), heads("value")
    scores = jnp.einsum(
      "bqnd,bknd->bnqk",
      queries,
      keys,
      preferred_element_type=config.wide_dtype,
    )
    # A finite minimum: a text that is all padding gets even weights, no NaN.
    minimum = jnp.finfo(scores.dtype).min
    scores = jnp.where(mask[:, None, None, :], scores * size**-0.5, minimum)
    weights = nn.softmax(scores).astype(config.dtype)
    weights = _Dropout(config.attention_dropout)(weights, deterministic)
    attended = jnp.einsum("bnqk,bknd->bqnd", weights, values)
    return _dense(config, config.hidden_size, "output")(
      attended.reshape(hidden.shape)
    )


class _Layer(nn.Module):
  """Attention and feed-forward; each is added, then normalized (post-LN)."""

  config: EncoderConfig

  @nn.compact
  def __call__(
    self, hidden: jax.Array, mask: jax.Array, deterministic: bool
  ) -> jax.Array:
    config = self.config
    attended = _Attention(config, name="attention")(hidden, mask, deterministic)
    attended = _Dropout(config.hidden_dropout)(attended, deterministic)
    hidden = _layer_norm(config, "attention_norm")(hidden + attended)

    inner = _dense(config, config.intermediate_size, "intermediate")(hidden)
    inner = _ACTIVATIONS[config.hidden_act](inner)
    output = _dense(config, config.hidden_size, "output")(inner)
    output = _Dropout(config.hidden_dropout)(output, deterministic)
    return _layer_norm(config, "output_norm")(hidden + output)


class Encoder(nn.Module):
  """A BERT without pooler (Devlin et al. 2019)."""

  config: EncoderConfig

  @nn.compact
  def __call__(
    self, ids: jax.Array, mask: jax.Array, deterministic: bool = True
  ) -> jax.Array:
    """Encodes texts.

    Args:
      ids: [texts, length] int32, token ids.
      mask: [texts, length] bool, False at padding.
      deterministic: False applies dropout, with the rng "dropout".

    Returns:
      [texts, length, hidden] hidden states in the config's dtype; finite at
      padding, too.

    Raises:
      ValueError: if the texts are longer than there are positions.
    """
    if ids.shape[1] > self.config.max_positions:
      raise ValueError(
        f"The texts have {ids.shape[1]} tokens, but the encoder has only"
        f" {self.config.max_positions} positions."
      )
    hidden = _Embeddings(self.config, name="embeddings")(ids, deterministic)
    for i in range(self.config.num_layers):
      hidden = _Layer(self.config, name=f"layer_{i}")(
        hidden, mask, deterministic
      )
    return hidden


def pool(hidden: jax.Array, mask: jax.Array, pooling: str) -> jax.Array:
  """Pools hidden states into one vector per text.

  Args:
    hidden: [texts, length, hidden] hidden states.
    mask: [texts, length] bool, False at padding.
    pooling: "mean" over non-padding tokens, or "cls", the first of them.

  Returns:
    [texts, hidden], at least float32; zeros for a text that is all padding.

  Raises:
    ValueError: if there is no such pooling.
  """
  wide = hidden.astype(jnp.promote_types(hidden.dtype, jnp.float32))
  weights = mask.astype(wide.dtype)
  if pooling == "mean":
    weights /= jnp.maximum(weights.sum(axis=1, keepdims=True), 1)
  elif pooling == "cls":
    # With padding on the left, the first token isn't at 0.
    weights *= mask.cumsum(axis=1) == 1
  else:
    raise ValueError(f"pooling is {pooling!r}; use 'mean' or 'cls'.")
  # A sum, not a dot: dots of float32 are rounded to bfloat16 on a TPU.
  return (weights[:, :, None] * wide).sum(axis=1)


def unit_length(vectors: jax.Array) -> jax.Array:
  """Scales vectors, [..., hidden], to unit length.

  Those shorter than 1e-12 stay as they are, so that the zero vectors of
  padding texts have a finite gradient.
  """
  squares = (vectors * vectors).sum(axis=-1, keepdims=True)
  return vectors / jnp.sqrt(jnp.where(squares > 1e-24, squares, 1))


def with_towers(encoder_params: Mapping, towers: str) -> dict:
  """The parameters of one encoder as those of one or two towers.

  Args:
    encoder_params: One encoder's parameters.
    towers: "tied", the towers are one encoder; or "separate", they start
      from the same weights.

  Returns:
    {"encoder": tree}, or {"query_encoder": tree, "passage_encoder": tree}
    with buffers of their own.

  Raises:
    ValueError: if towers is neither.
  """
  if towers not in TOWERS:
    raise ValueError(f"model.towers is {towers!r}; use one of {TOWERS}.")
  if towers == "tied":
    return {"encoder": encoder_params}
  return {
    "query_encoder": encoder_params,
    "passage_encoder": jax.tree.map(lambda x: x.copy(), encoder_params),
  }


# Jitted: op by op, initialization takes seconds.
@functools.partial(jax.jit, static_argnames=("config", "towers"))
def init_params(config: EncoderConfig, towers: str, key: jax.Array) -> dict:
  """Draws float32 parameters: see `with_towers` for their form.

  Weights are normal with the config's initializer_range, biases 0, layer
  norms 1 (Devlin et al. 2019); rows beyond the vocabulary are 0.
  """
  ids = jnp.zeros((1, 1), jnp.int32)
  params = Encoder(config).init(key, ids, ids == 0)["params"]
  return with_towers(params, towers)


def abstract_params(config: EncoderConfig, towers: str) -> dict:
  """Shapes and dtypes of what `init_params` draws, without drawing it."""
  return jax.eval_shape(lambda: init_params(config, towers, jax.random.key(0)))


def embed(
  config: EncoderConfig,
  params: Mapping,
  tower: str,
  tokens: Mapping[str, jax.Array],
  *,
  pooling: str,
  normalize: bool,
  dropout_key: jax.Array | None = None,
) -> jax.Array:
  """Turns tokenized texts into vectors.

  Args:
    config: The encoder's.
    params: Of the towers, as `with_towers` gives them.
    tower: "query" or "passage".
    tokens: "ids", [..., length] int32, and "mask", [..., length] bool, False
      at padding; any leading axes.
    pooling: "mean" or "cls".
    normalize: Whether vectors are scaled to unit length.
    dropout_key: Applies dropout if given.

  Returns:
    [..., hidden] float32; zeros for a text that is all padding.

  Raises:
    ValueError: if the tower or pooling is unknown or the texts too long.
  """
  if tower not in ("query", "passage"):
    raise ValueError(f"tower is {tower!r}; use 'query' or 'passage'.")
  name = "encoder" if "encoder" in params else f"{tower}_encoder"
  *leading, length = tokens["ids"].shape
  ids = tokens["ids"].reshape(-1, length)
  mask = tokens["mask"].reshape(-1, length)
  hidden = Encoder(config).apply(
    {"params": params[name]},
    ids,
    mask,
    deterministic=dropout_key is None,
    rngs=None if dropout_key is None else {"dropout": dropout_key},
  )
  vectors = pool(hidden, mask, pooling)
  if normalize:
    vectors = unit_length(vectors)
  return vectors.reshape(*leading, -1)
