"""Texts to vectors: the encoder of any family, pooling, projection, towers."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from mlir_jax.models import architecture, bert, masked_lm, modernbert
from mlir_jax.models import rows as rows_lib

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
  texts: Sequence[rows_lib.Rows],
  token_vectors: jax.Array | None = None,
) -> list[jax.Array]:
  """Encodes texts, up to the last layer's states.

  All tokens go through the dense layers together; attention alone looks at
  the rows.

  Args:
    config: The encoder's.
    params: One encoder's.
    texts: Rows of one or more lengths, N tokens together; if they have seeds,
      dropout is applied to each text by its seed alone. No text is longer
      than `config.max_length`.
    token_vectors: [N, hidden] float32: `token_table(params)[ids]` if given, so
      that one can differentiate by them and not by the table.

  Returns:
    For each of the rows [R, L, hidden] in the config's dtype; finite at
    padding, too.
  """
  weights = {name: params[name] for name in params if name != PROJECTION}
  states = _ARCHITECTURES[config.architecture](config).apply(
    {"params": weights}, tuple(texts), token_vectors
  )
  return rows_lib.split(texts, states)


def split_table(params: Mapping) -> tuple[jax.Array, Mapping]:
  """One tower's token table, and its parameters with None in that place."""
  embeddings = params["embeddings"]
  rest = {**params, "embeddings": {**embeddings, "token": None}}
  return embeddings["token"], rest


def join_table(table: jax.Array, rest: Mapping) -> Mapping:
  """The tower's parameters that `split_table` took apart."""
  return {**rest, "embeddings": {**rest["embeddings"], "token": table}}


def pool(
  states: jax.Array, segment: jax.Array, texts: int, pooling: str
) -> jax.Array:
  """Pools the states of each text's tokens into one vector.

  Args:
    states: [R, L, hidden].
    segment: int32 [R, L], as in `rows.Rows`.
    texts: S, the most texts in a row.
    pooling: "mean" over a text's tokens, "cls", the first of them, or "last".

  Returns:
    [R, S, hidden], at least float32; zeros where there is no text.

  Raises:
    ValueError: if there is no such pooling.
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
  # Exact: a plain product of float32 is rounded to bfloat16 on a TPU.
  sums = jnp.einsum(
    "rsl,rlh->rsh", weights, wide, precision=jax.lax.Precision.HIGHEST
  )
  # One token a text for "cls" and "last".
  return sums / jnp.maximum(weights.sum(axis=-1, keepdims=True), 1)


def project(
  config: architecture.EncoderConfig, projection: Mapping, vectors: jax.Array
) -> jax.Array:
  """The dense layer on pooled vectors, in float32 whatever the dtype.

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
  rows = rows_lib.one_a_row(ids, ids == 0)
  # Drawing needs no fused attention, and no GPU.
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
  texts: Sequence[rows_lib.Rows],
  *,
  pooling: str,
  normalize: bool,
  token_vectors: jax.Array | None = None,
) -> list[jax.Array]:
  """Turns tokenized texts into vectors.

  Args:
    config: The encoder's.
    params: Of the towers, as `with_towers` gives them.
    tower: "query" or "passage".
    texts: As in `hidden_states`, like `token_vectors`.
    pooling: "mean", "cls" or "last".
    normalize: Whether vectors are scaled to unit length.
    token_vectors: See there.

  Returns:
    For each of the rows [R, S, output_size] float32; zeros where there is no
    text (or the projection of zeros).

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
    found.append(unit_length(vectors) if normalize else vectors)
  return found


def masked_states(
  config: architecture.EncoderConfig,
  params: Mapping,
  tower: str,
  texts: Sequence[rows_lib.Rows],
  token_vectors: jax.Array | None = None,
) -> list[jax.Array]:
  """The last layer's states at some places, for the head to predict from.

  Args:
    config: The encoder's.
    params: As in `embed`.
    tower: "query" or "passage".
    texts: As in `hidden_states`, with `places`; like `token_vectors`.
    token_vectors: See there.

  Returns:
    For each of the rows [R, K, hidden] in the config's dtype.
  """
  weights = tower_params(params, tower)
  states = hidden_states(config, weights, texts, token_vectors)
  return [
    jnp.take_along_axis(of_rows, rows.places[:, :, None], axis=1)
    for rows, of_rows in zip(texts, states, strict=True)
  ]
