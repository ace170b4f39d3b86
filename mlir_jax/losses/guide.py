"""Finds the passages of a batch that a guide model takes for right answers.

A guide is a frozen retriever. GISTEmbed (Solatorio 2024, arXiv 2402.16829): a
passage is no negative of a query if the guide gives it a higher cosine than the
query's own positive. The margins are those of NV-Retriever (Moreira et al.
2024, arXiv 2407.15831), TopK-MarginPos and TopK-PercPos; they mean what they
mean in `mining.rules` and in sentence-transformers.
"""

import jax
import jax.numpy as jnp

from mlir_jax.losses import base, similarity

Array = jax.Array


def false_negatives(
  queries: Array,
  passages: Array,
  *,
  absolute_margin: float = 0.0,
  relative_margin: float = 0.0,
  replicate: base.Replicate = lambda x: x,
) -> Array:
  """Returns the pairs of query and passage that may be right.

  With p the guide's cosine of a query and its own positive, these are the pairs
  with a cosine above p - absolute_margin or above p - |p| * relative_margin.
  Without margins, a passage that the guide finds as good as the positive is a
  negative.

  Args:
    queries: The guide's vectors, [B, G], of any float type and length.
    passages: [B, 1 + H, G]; column 0 is the positive. A passage with the vector
      0 has the cosine 0.
    absolute_margin: A negative's cosine is at least so much lower than p.
    relative_margin: The same, as a share of |p|.
    replicate: A sharding constraint on the candidates.

  Returns:
    bool [B, B * (1 + H)]. The value at a query's own positive has no meaning.
  """
  batch, columns, _ = passages.shape
  # The vectors are whole on every device in their own type, which is short.
  candidates = replicate(passages.reshape(batch * columns, -1))
  cosines = similarity.scores(_unit(queries), _unit(candidates))
  own = (jnp.arange(batch) * columns)[:, None]
  positive = jnp.take_along_axis(cosines, own, axis=1)
  limit = positive - jnp.maximum(
    absolute_margin, relative_margin * jnp.abs(positive)
  )
  return cosines > limit


def _unit(vectors: Array) -> Array:
  """Returns vectors of unit length, float32 or wider; 0 stays 0."""
  vectors = vectors.astype(jnp.promote_types(vectors.dtype, jnp.float32))
  length = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
  return vectors / jnp.where(length > 0, length, 1)
