"""The model: turns rows of tokens into vectors, for encoders of any family."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from mlir_jax.models import architecture, bert, masked_lm, modernbert
from mlir_jax.models import rows as rows_lib

TOWERS = ("tied", "separate")
# Next to the towers' parameters: the head for masked language modelling.
MASKED_LM = "masked_lm"
TOWER_NAMES = ("encoder", "query_encoder", "passage_encoder")
# In a tower's parameters: the dense layer on its pooled vectors.
PROJECTION = "projection"


_ARCHITECTURES = {"bert": bert.Bert, "modernbert": modernbert.ModernBert}


def hidden_states(
  config: architecture.EncoderConfig,
  params: Mapping,
  texts: Sequence[rows_lib.Rows],
  token_vectors: jax.Array | None = None,
) -> list[jax.Array]:
  """Encodes texts and returns the last layer's states.

  All tokens go through the dense layers together. Only attention works row by
  row.

  Args:
    config: The encoder's.
    params: One encoder's.
    texts: Blocks of rows, N tokens together. If they have seeds, dropout in
      each text depends only on its seed. No text is longer than
      `config.max_length`.
    token_vectors: [N, hidden] float32, the tokens' rows of the token table.
      Give them to differentiate by them instead of by the table.

  Returns:
    For each block [R, L, hidden] in the config's dtype; also finite at padding.
  """
  weights = {name: params[name] for name in params if name != PROJECTION}
  states = _ARCHITECTURES[config.architecture](config).apply(
    {"params": weights}, tuple(texts), token_vectors
  )
  return rows_lib.split(texts, states)


def split_table(params: Mapping) -> tuple[jax.Array, Mapping]:
  """Returns a tower's token table, and its parameters with None instead."""
  embeddings = params["embeddings"]
  rest = {**params, "embeddings": {**embeddings, "token": None}}
  return embeddings["token"], rest


def join_table(table: jax.Array, rest: Mapping) -> Mapping:
  """Joins the parts of `split_table` to the tower's parameters again."""
  return {**rest, "embeddings": {**rest["embeddings"], "token": table}}


def pool(
  states: jax.Array, segment: jax.Array, texts: int, pooling: str
) -> jax.Array:
  """Pools the states of each text's tokens into one vector.

  Args:
    states: [R, L, hidden].
    segment: int32 [R, L], as in `rows.Rows`.
    texts: S, the largest number of texts in a row.
    pooling: "mean" over a text's tokens, "cls" (its first token) or "last".

  Returns:
    [R, S, hidden], at least float32; zeros where there is no text.

  Raises:
    ValueError: if the pooling is unknown.
  """
  wide = states.astype(jnp.promote_types(states.dtype, jnp.float32))
  numbers = jnp.arange(1, texts + 1, dtype=segment.dtype)
  weights = segment[:, None] == numbers[:, None]
  if pooling == "cls":
    weights &= rows_lib.begins(segment)[:, None]
  elif pooling == "last":
    weights &= rows_lib.ends(segment)[:, None]
  elif pooling != "mean":
    raise ValueError(f"pooling is {pooling!r}; use 'mean', 'cls' or 'last'.")
  weights = weights.astype(wide.dtype)
  # Exact, because by default a TPU rounds the factors to bfloat16.
  sums = jnp.einsum(
    "rsl,rlh->rsh", weights, wide, precision=jax.lax.Precision.HIGHEST
  )
  # For "cls" and "last", each text has one token here.
  return sums / jnp.maximum(weights.sum(axis=-1, keepdims=True), 1)


def project(
  config: architecture.EncoderConfig, projection: Mapping, vectors: jax.Array
) -> jax.Array:
  """Applies the dense layer to pooled vectors, in float32 for every dtype.

  Args:
    config: The encoder's.
    projection: "kernel" [hidden, projection_size], and "bias" if it has one.
    vectors: [..., hidden].

  Returns:
    [..., projection_size].
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

  Vectors shorter than 1e-12 do not change, so that the zero vectors where there
  is no text have a finite gradient.
  """
  squares = (vectors * vectors).sum(axis=-1, keepdims=True)
  return vectors / jnp.sqrt(jnp.where(squares > 1e-24, squares, 1))


def with_towers(encoder_params: Mapping, towers: str) -> dict:
  """Makes the parameters of one or two towers from those of one encoder.

  Args:
    encoder_params: One encoder's parameters.
    towers: "tied" for one encoder, or "separate" for two, which start from the
      same weights.

  Returns:
    {"encoder": tree}, or {"query_encoder": tree, "passage_encoder": tree} with
    separate buffers.

  Raises:
    ValueError: if `towers` has another value.
  """
  if towers not in TOWERS:
    raise ValueError(f"model.towers is {towers!r}; use one of {TOWERS}.")
  if towers == "tied":
    return {"encoder": encoder_params}
  return {
    "query_encoder": encoder_params,
    "passage_encoder": jax.tree.map(lambda x: x.copy(), encoder_params),
  }


# Jitted, because initialization takes seconds without it.
@functools.partial(jax.jit, static_argnames=("config", "towers", "with_head"))
def init_params(
  config: architecture.EncoderConfig,
  towers: str,
  key: jax.Array,
  with_head: bool = False,
) -> dict:
  """Draws float32 parameters, in the form that `with_towers` returns.

  Weights are normal with the config's initializer_range, biases 0, layer
  norms 1 (Devlin et al. 2019); rows beyond the vocabulary are 0.

  Args:
    config: The encoder's.
    towers: As in `with_towers`.
    key: A random key.
    with_head: Adds "masked_lm", the head for masked language modelling.
  """
  ids = jnp.zeros((1, 1), jnp.int32)
  rows = rows_lib.one_a_row(ids, ids == 0)
  # Initialization needs neither fused attention nor a GPU.
  module = _ARCHITECTURES[config.architecture](
    dataclasses.replace(config, attention="xla")
  )
  params = dict(module.init(key, (rows,), None)["params"])
  if config.projection_size:
    params[PROJECTION] = init_projection(config, key)
  params = with_towers(params, towers)
  if with_head:
    params[MASKED_LM] = init_head(config, key)
  return params


def init_projection(config: architecture.EncoderConfig, key: jax.Array) -> dict:
  """Draws the parameters of `project`, as `init_params` does with this key."""
  key = jax.random.fold_in(key, 1)
  shape = (config.hidden_size, config.projection_size)
  # With this scale a vector keeps its length, on average.
  scale = config.hidden_size**-0.5
  projection = {"kernel": scale * jax.random.normal(key, shape)}
  if config.projection_bias:
    projection["bias"] = jnp.zeros(config.projection_size)
  return projection


def init_head(config: architecture.EncoderConfig, key: jax.Array) -> dict:
  """Draws the head's parameters, as `init_params` does with this key."""
  return masked_lm.init(config, jax.random.fold_in(key, 2))


def abstract_params(
  config: architecture.EncoderConfig, towers: str, with_head: bool = False
) -> dict:
  """Returns the shapes and dtypes of `init_params`, without drawing."""
  return jax.eval_shape(
    lambda: init_params(config, towers, jax.random.key(0), with_head)
  )


def tower_name(params: Mapping, tower: str) -> str:
  """Returns the name of a tower's parameters.

  Args:
    params: The towers' parameters, as `with_towers` returns them.
    tower: "query", "passage", or "masked" for texts with hidden words, which
      the passage tower encodes.

  Raises:
    ValueError: if there is no such tower.
  """
  if tower not in ("query", "passage", "masked"):
    raise ValueError(f"tower is {tower!r}; use 'query' or 'passage'.")
  if "encoder" in params:
    return "encoder"
  return "query_encoder" if tower == "query" else "passage_encoder"


def tower_params(params: Mapping, tower: str) -> Mapping:
  """Returns one tower's parameters; see `tower_name`."""
  return params[tower_name(params, tower)]


def embed(
  config: architecture.EncoderConfig,
  params: Mapping,
  tower: str,
  texts: Sequence[rows_lib.Rows],
  *,
  pooling: str,
  normalize: bool,
  truncate_dim: int = 0,
  token_vectors: jax.Array | None = None,
) -> list[jax.Array]:
  """Turns tokenized texts into vectors.

  Args:
    config: The encoder's.
    params: The towers' parameters, as `with_towers` returns them.
    tower: "query" or "passage".
    texts: As in `hidden_states`.
    pooling: "mean", "cls" or "last".
    normalize: Whether vectors are scaled to unit length.
    truncate_dim: Before that, vectors are cut to so many numbers; 0 keeps all.
    token_vectors: As in `hidden_states`.

  Returns:
    For each block [R, S, truncate_dim or output_size] float32. Where there is
    no text: zeros, or the projection of zeros.

  Raises:
    ValueError: if the tower or pooling is unknown.
  """
  weights = tower_params(params, tower)
  found = []
  states = hidden_states(config, weights, texts, token_vectors)
  for rows, of_rows in zip(texts, states, strict=True):
    vectors = pool(of_rows, rows.segment, rows.texts, pooling)
    if config.projection_size:
      vectors = project(config, weights[PROJECTION], vectors)
    if truncate_dim:
      vectors = vectors[..., :truncate_dim]
    found.append(unit_length(vectors) if normalize else vectors)
  return found


def masked_states(
  config: architecture.EncoderConfig,
  params: Mapping,
  tower: str,
  texts: Sequence[rows_lib.Rows],
  token_vectors: jax.Array | None = None,
) -> list[jax.Array]:
  """Returns the last layer's states at some places, the input of the head.

  Args:
    config: The encoder's.
    params: As in `embed`.
    tower: "query" or "passage".
    texts: As in `hidden_states`, with `places`.
    token_vectors: As in `hidden_states`.

  Returns:
    For each block [R, K, hidden] in the config's dtype.
  """
  weights = tower_params(params, tower)
  states = hidden_states(config, weights, texts, token_vectors)
  return [
    jnp.take_along_axis(of_rows, rows.places[:, :, None], axis=1)
    for rows, of_rows in zip(texts, states, strict=True)
  ]
