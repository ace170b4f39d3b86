"""Texts to vectors: the encoder of any family, pooling, projection, towers."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mlir_jax.models import architecture, bert, masked_lm, modernbert

TOWERS = ("tied", "separate")
# Beside the towers' parameters: the head for masked language modelling.
MASKED_LM = "masked_lm"
TOWER_NAMES = ("encoder", "query_encoder", "passage_encoder")
# In a tower's: the dense layer on its pooled vectors.
PROJECTION = "projection"


_ARCHITECTURES = {"bert": bert.Bert, "modernbert": modernbert.ModernBert}


def hidden_states(
  config: architecture.EncoderConfig,
  params: Mapping,
  ids: jax.Array,
  mask: jax.Array,
  seeds: jax.Array | None = None,
  token_vectors: jax.Array | None = None,
) -> jax.Array:
  """Encodes texts, up to the last layer's states.

  Args:
    config: The encoder's.
    params: One encoder's.
    ids: [texts, length] int32, token ids.
    mask: [texts, length] bool, False at padding.
    seeds: uint32 [texts]; applies dropout if given, to each text by its seed
      alone.
    token_vectors: [texts, length, hidden] float32: `token_table(params)[ids]`
      if given, so that one can differentiate by them and not by the table.

  Returns:
    [texts, length, hidden] in the config's dtype; finite at padding, too.

  Raises:
    ValueError: if the texts are longer than there are positions.
  """
  if ids.shape[1] > config.max_length:
    raise ValueError(
      f"The texts have {ids.shape[1]} tokens, but the encoder has only"
      f" {config.max_length} positions."
    )
  weights = {name: params[name] for name in params if name != PROJECTION}
  return _ARCHITECTURES[config.architecture](config).apply(
    {"params": weights},
    ids,
    mask,
    seeds,
    token_vectors,
  )


def split_table(params: Mapping) -> tuple[jax.Array, Mapping]:
  """One tower's token table, and its parameters with None in that place."""
  embeddings = params["embeddings"]
  rest = {**params, "embeddings": {**embeddings, "token": None}}
  return embeddings["token"], rest


def join_table(table: jax.Array, rest: Mapping) -> Mapping:
  """The tower's parameters that `split_table` took apart."""
  return {**rest, "embeddings": {**rest["embeddings"], "token": table}}


def pool(hidden: jax.Array, mask: jax.Array, pooling: str) -> jax.Array:
  """Pools hidden states into one vector per text.

  Args:
    hidden: [texts, length, hidden] hidden states.
    mask: [texts, length] bool, False at padding.
    pooling: "mean" over non-padding tokens, "cls", the first of them, or
      "last".

  Returns:
    [texts, hidden], at least float32; zeros for a text that is all padding.

  Raises:
    ValueError: if there is no such pooling.
  """
  wide = hidden.astype(jnp.promote_types(hidden.dtype, jnp.float32))
  weights = mask.astype(wide.dtype)
  # Padding may stand on either side.
  before = mask.cumsum(axis=1)
  if pooling == "mean":
    weights /= jnp.maximum(weights.sum(axis=1, keepdims=True), 1)
  elif pooling == "cls":
    weights *= before == 1
  elif pooling == "last":
    weights *= before == before[:, -1:]
  else:
    raise ValueError(f"pooling is {pooling!r}; use 'mean', 'cls' or 'last'.")
  # A sum, not a dot: dots of float32 are rounded to bfloat16 on a TPU.
  return (weights[:, :, None] * wide).sum(axis=1)


def project(
  config: architecture.EncoderConfig, projection: Mapping, vectors: jax.Array
) -> jax.Array:
  """The dense layer on pooled vectors, in float32 whatever the dtype.

  Args:
    config: The encoder's.
    projection: "kernel" [hidden, projection_size], and "bias" if it has one.
    vectors: [texts, hidden].

  Returns:
    [texts, projection_size].
  """
  projected = jnp.dot(
    vectors, projection["kernel"], precision=jax.lax.Precision.HIGHEST
  )
  if config.projection_bias:
    projected += projection["bias"]
  if config.projection_activation == "tanh":
    return jnp.tanh(projected)
  return projected


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
@functools.partial(jax.jit, static_argnames=("config", "towers", "with_head"))
def init_params(
  config: architecture.EncoderConfig,
  towers: str,
  key: jax.Array,
  with_head: bool = False,
) -> dict:
  """Draws float32 parameters: see `with_towers` for their form.

  Weights are normal with the config's initializer_range, biases 0, layer
  norms 1 (Devlin et al. 2019); rows beyond the vocabulary are 0.

  Args:
    config: The encoder's.
    towers: As in `with_towers`.
    key: A random key.
    with_head: Adds "masked_lm", the head for masked language modelling.
  """
  ids = jnp.zeros((1, 1), jnp.int32)
  # Drawing needs no fused attention, and no GPU.
  module = _ARCHITECTURES[config.architecture](
    dataclasses.replace(config, attention="xla")
  )
  params = dict(module.init(key, ids, ids == 0, None, None)["params"])
  if config.projection_size:
    params[PROJECTION] = init_projection(config, key)
  params = with_towers(params, towers)
  if with_head:
    params[MASKED_LM] = init_head(config, key)
  return params


def init_projection(config: architecture.EncoderConfig, key: jax.Array) -> dict:
  """Draws the parameters of `project`: those of `init_params` by that key."""
  key = jax.random.fold_in(key, 1)
  shape = (config.hidden_size, config.projection_size)
  # Of the size at which a vector keeps its length, on average.
  scale = config.hidden_size**-0.5
  projection = {"kernel": scale * jax.random.normal(key, shape)}
  if config.projection_bias:
    projection["bias"] = jnp.zeros(config.projection_size)
  return projection


def init_head(config: architecture.EncoderConfig, key: jax.Array) -> dict:
  """Draws the head's parameters: those of `init_params` by that key."""
  return masked_lm.init(config, jax.random.fold_in(key, 2))


def abstract_params(
  config: architecture.EncoderConfig, towers: str, with_head: bool = False
) -> dict:
  """Shapes and dtypes of what `init_params` draws, without drawing it."""
  return jax.eval_shape(
    lambda: init_params(config, towers, jax.random.key(0), with_head)
  )


def tower_name(params: Mapping, tower: str) -> str:
  """What a tower's parameters are called.

  Args:
    params: Of the towers, as `with_towers` gives them.
    tower: "query", "passage", or "masked", which the passage tower reads.

  Raises:
    ValueError: if there is no such tower.
  """
  if tower not in ("query", "passage", "masked"):
    raise ValueError(f"tower is {tower!r}; use 'query' or 'passage'.")
  if "encoder" in params:
    return "encoder"
  return "query_encoder" if tower == "query" else "passage_encoder"


def tower_params(params: Mapping, tower: str) -> Mapping:
  """One tower's parameters, see `tower_name`."""
  return params[tower_name(params, tower)]


def embed(
  config: architecture.EncoderConfig,
  params: Mapping,
  tower: str,
  tokens: Mapping[str, jax.Array],
  *,
  pooling: str,
  normalize: bool,
  seeds: jax.Array | None = None,
  token_vectors: jax.Array | None = None,
) -> jax.Array:
  """Turns tokenized texts into vectors.

  Args:
    config: The encoder's.
    params: Of the towers, as `with_towers` gives them.
    tower: "query" or "passage".
    tokens: "ids", [..., length] int32, and "mask", [..., length] bool, False
      at padding; any leading axes.
    pooling: "mean", "cls" or "last".
    normalize: Whether vectors are scaled to unit length.
    seeds: uint32 [...], like `token_vectors` [..., length, hidden] as in
      `hidden_states`.
    token_vectors: See there.

  Returns:
    [..., output_size] float32; zeros for a text that is all padding (or the
    projection of zeros).

  Raises:
    ValueError: if the tower or pooling is unknown or the texts too long.
  """
  weights = tower_params(params, tower)
  *leading, length = tokens["ids"].shape
  ids = tokens["ids"].reshape(-1, length)
  mask = tokens["mask"].reshape(-1, length)
  if seeds is not None:
    seeds = seeds.ravel()
  if token_vectors is not None:
    token_vectors = token_vectors.reshape(-1, length, config.hidden_size)
  hidden = hidden_states(config, weights, ids, mask, seeds, token_vectors)
  vectors = pool(hidden, mask, pooling)
  if config.projection_size:
    vectors = project(config, weights[PROJECTION], vectors)
  if normalize:
    vectors = unit_length(vectors)
  return vectors.reshape(*leading, -1)


def masked_states(
  config: architecture.EncoderConfig,
  params: Mapping,
  tower: str,
  tokens: Mapping[str, jax.Array],
  positions: jax.Array,
  seeds: jax.Array | None = None,
  token_vectors: jax.Array | None = None,
) -> jax.Array:
  """The last layer's states at some places, for the head to predict from.

  Args:
    config: The encoder's.
    params: As in `embed`, like the tower and the dropout key.
    tower: "query" or "passage".
    tokens: "ids" and "mask" [texts, length].
    positions: [texts, K] int32.
    seeds: As in `hidden_states`, like `token_vectors`.
    token_vectors: See there.

  Returns:
    [texts, K, hidden] in the config's dtype.
  """
  hidden = hidden_states(
    config,
    tower_params(params, tower),
    tokens["ids"],
    tokens["mask"],
    seeds,
    token_vectors,
  )
  return jnp.take_along_axis(hidden, positions[:, :, None], axis=1)
