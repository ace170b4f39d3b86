"""Cosines of vectors and statistics of them, for the contrastive losses.

Score matrices are computed with `precision=HIGHEST`. Without it, float32
products run as bfloat16 on TPU and as TF32 on GPU.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def scores(anchors: Array, candidates: Array) -> Array:
  """Computes inner products [A, D] x [C, D] -> [A, C], float32 or wider."""
  return jnp.matmul(
    anchors,
    candidates.T,
    precision=jax.lax.Precision.HIGHEST,
    preferred_element_type=jnp.promote_types(anchors.dtype, jnp.float32),
  )


def cross_entropy(scores: Array, positive: Array, allowed: Array) -> Array:
  """Computes -log softmax of each row at its positive, over allowed columns."""
  at_positive = jnp.take_along_axis(scores, positive[:, None], axis=1)[:, 0]
  allowed = allowed | (positive[:, None] == jnp.arange(scores.shape[1]))
  scores = jnp.where(allowed, scores, -jnp.inf)
  return jax.nn.logsumexp(scores, axis=1) - at_positive


def masked_mean(values: Array, use: Array) -> Array:
  """Returns the mean of the used values, [A, C]; 0 if none is used."""
  return jnp.where(use, values, 0).sum() / jnp.maximum(count(use), 1)


def count(use: Array) -> Array:
  """Counts the used values in float32; int32 overflows in a large batch."""
  return use.sum(axis=-1).astype(jnp.float32).sum()


def unit(vectors: Array) -> Array:
  """Scales vectors [..., D] to unit length; 0 stays 0, with the gradient 0."""
  squares = jnp.square(vectors).sum(axis=-1, keepdims=True)
  return vectors * jax.lax.rsqrt(jnp.where(squares > 0, squares, 1))


def effective_rank(embeddings: Array) -> Array:
  """Measures over how many directions, at most D, embeddings [n, D] spread.

  It is the participation ratio of their covariance, (sum of eigenvalues)^2 /
  sum of squared eigenvalues. Like the entropy-based effective rank, it is D for
  equal eigenvalues and 1 for a line. It needs no eigendecomposition, which
  would stall a TPU at each step.
  """
  centred = embeddings - embeddings.mean(axis=0)
  covariance = scores(centred.T, centred.T)
  trace = jnp.trace(covariance)
  return jnp.square(trace) / jnp.maximum(
    jnp.square(covariance).sum(), jnp.finfo(covariance.dtype).tiny
  )
