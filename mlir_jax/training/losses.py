"""The losses, written for the global batch: the three of Hu et al. (2023).

These take unit-norm embeddings, compare texts by int32 ids, and return the loss
with what is worth logging. Texts of one role are compared by their sequences,
which are equal where what is encoded is; texts of two roles by their text ids.
Score matrices are computed with `precision=HIGHEST`: float32 products run as
bfloat16 on TPU and as TF32 on GPU otherwise. The formulas are this project's
reading of arXiv 2210.06633, whose authors published no code. Beside them stands
masked language modelling.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Metrics = dict[str, Array]

# What the language loss of a pair and a third point is when they agree.
LANGUAGE_MINIMUM = 2 * math.log(2)


class ThirdPoints(NamedTuple):
  """Sentences that should be equally far from both sides of a translation.

  Attributes:
    embeddings: [K, D].
    text: Text ids, int32 [K].
    sequence: Their sequences, int32 [K]; -1 in another role than the
      translations'.
    valid: bool [K]; False for padding.
  """

  embeddings: Array
  text: Array
  sequence: Array
  valid: Array


def _scores(anchors: Array, candidates: Array) -> Array:
  """Inner products [A, D] x [C, D] -> [A, C], in float32 or wider."""
  return jnp.matmul(
    anchors,
    candidates.T,
    precision=jax.lax.Precision.HIGHEST,
    preferred_element_type=jnp.promote_types(anchors.dtype, jnp.float32),
  )


def _cross_entropy(scores: Array, positive: Array, allowed: Array) -> Array:
  """-log softmax of each row at its positive, over the allowed columns."""
  at_positive = jnp.take_along_axis(scores, positive[:, None], axis=1)[:, 0]
  allowed = allowed | (positive[:, None] == jnp.arange(scores.shape[1]))
  scores = jnp.where(allowed, scores, -jnp.inf)
  return jax.nn.logsumexp(scores, axis=1) - at_positive


def ir_loss(
  queries: Array,
  passages: Array,
  *,
  query_sequence: Array,
  passage_sequence: Array,
  passage_valid: Array,
  positive_sequence: Array,
  temperature: float,
  symmetric: bool = False,
  replicate: Callable[[Array], Array] = lambda x: x,
) -> tuple[Array, Metrics]:
  """The IR loss: each query finds its passage among the global batch's.

  For query i: -log softmax over all passages p of s(q_i, p) / temperature, at
  its own positive. Not counted as negatives: passages that are encoded like a
  known positive of i, the positives of rows that ask the same question, and
  padding.

  Args:
    queries: [B, D].
    passages: [B, 1 + H, D]; column 0 is the positive, then hard negatives.
    query_sequence: The questions' sequences, int32 [B].
    passage_sequence: int32 [B, 1 + H].
    passage_valid: bool [B, 1 + H], False for padding, whose embeddings must
      be finite all the same.
    positive_sequence: Sequences of all known positives, int32 [B, P],
      -1-padded.
    temperature: Divides the cosines.
    symmetric: Adds the passage -> query direction, positives as anchors, and
      halves the sum. A query is no negative of a passage it would be masked
      for in the other direction.
    replicate: Applied to the candidates: the place for a sharding constraint.

  Returns:
    The loss, a scalar in nats, and the metrics "accuracy" (share of queries
    whose own positive scores highest among the allowed), "masked" (count of
    query-passage pairs that were left out, padding not counted),
    "queries_without_negatives" (count of those that learn nothing from it),
    "mean_cosine" (of queries and their negatives) and "effective_rank" (of the
    positives).
  """
  batch, columns, _ = passages.shape
  candidates = replicate(passages.reshape(batch * columns, -1))
  valid = passage_valid.reshape(-1)
  row = jnp.arange(batch)
  positive = row * columns
  is_positive = _known_positives(
    query_sequence, passage_sequence, positive_sequence
  )
  cosines = _scores(queries, candidates)
  scores = cosines / temperature
  allowed = valid[None] & ~is_positive
  loss = _cross_entropy(scores, positive, allowed).mean()

  own = positive[:, None] == jnp.arange(batch * columns)
  best = jnp.argmax(jnp.where(allowed | own, scores, -jnp.inf), axis=1)
  metrics = {
    "accuracy": (best == positive).mean(),
    "masked": (is_positive & valid[None] & ~own).sum(),
    # Its own positive is not among the allowed.
    "queries_without_negatives": (~allowed.any(axis=1)).sum(),
    "mean_cosine": _masked_mean(cosines, allowed),
    "effective_rank": effective_rank(passages[:, 0]),
  }
  if symmetric:
    to_queries = scores.reshape(batch, batch, columns)[:, :, 0].T
    allowed = ~is_positive.reshape(batch, batch, columns)[:, :, 0].T
    backward = _cross_entropy(to_queries, row, allowed).mean()
    loss = (loss + backward) / 2
  return loss, metrics


def _known_positives(
  query_sequence: Array, passage_sequence: Array, positive_sequence: Array
) -> Array:
  """Which passages are no negatives of which queries, bool [B, B * (1 + H)].

  The arguments are those of `ir_loss`.
  """
  batch, columns = passage_sequence.shape
  passages = passage_sequence.reshape(-1)

  def add(found, known):  # One of the P at a time.
    hit = (passages == known[:, None]) & (known >= 0)[:, None]
    return found | hit, None

  # A row's own positive may be missing from its list of known ones.
  own = passages[None] == passage_sequence[:, :1]
  are_known, _ = jax.lax.scan(add, own, positive_sequence.T)
  same_question = query_sequence[:, None] == query_sequence[None, :]
  asked_alike = jnp.zeros((batch, batch, columns), bool)
  asked_alike = asked_alike.at[:, :, 0].set(same_question)
  return are_known | asked_alike.reshape(batch, -1)


def semantic_loss(
  sentences: Array,
  sequence: Array,
  *,
  temperature: float,
  replicate: Callable[[Array], Array] = lambda x: x,
) -> tuple[Array, Metrics]:
  """The semantic contrastive loss: NT-Xent over both sides of translations.

  The N pairs give 2N sentences, all languages mixed. For each sentence i with
  translation j: -log softmax over the other 2N - 1 of s(z_i, z_k) /
  temperature, at j; the mean over all 2N. A candidate k with partner m is no
  negative when k or m is encoded like i or j: a copy, or another translation
  of the same sentence. The positive itself is never masked.

  Args:
    sentences: [N, 2, D]; the second axis holds the two sides.
    sequence: Their sequences, int32 [N, 2].
    temperature: Divides the cosines.
    replicate: Applied to the candidates: the place for a sharding constraint.

  Returns:
    The loss, a scalar in nats, and the metrics "accuracy" (share of sentences
    whose translation scores highest), "masked" (pairs left out, the sentence
    itself not counted), "sentences_without_negatives" (count of those that
    learn nothing from it), "mean_cosine" (of sentences that are not
    translations of each other: near 1 when the space collapses) and
    "effective_rank".
  """
  pairs = sentences.shape[0]
  embeddings = sentences.reshape(2 * pairs, -1)
  index = jnp.arange(2 * pairs)
  translation = index ^ 1

  def sides(ids):  # Of each sentence: its own, its translation's.
    return ids.reshape(-1), ids[:, ::-1].reshape(-1)

  related = jnp.zeros((2 * pairs, 2 * pairs), bool)
  for ours in sides(sequence):
    for theirs in sides(replicate(sequence)):
      related |= ours[:, None] == theirs
  itself = index[:, None] == index
  is_translation = translation[:, None] == index

  cosines = _scores(embeddings, replicate(embeddings))
  # `related` holds for the sentence itself too.
  losses = _cross_entropy(cosines / temperature, translation, ~related)
  best = jnp.argmax(
    jnp.where(~related | is_translation, cosines, -jnp.inf), axis=1
  )
  return losses.mean(), {
    "accuracy": (best == translation).mean(),
    "masked": (related & ~itself & ~is_translation).sum(),
    "sentences_without_negatives": related.all(axis=1).sum(),
    "mean_cosine": _masked_mean(cosines, ~related),
    "effective_rank": effective_rank(embeddings),
  }


def language_loss(
  sentences: Array,
  text: Array,
  sequence: Array,
  third_points: Mapping[str, ThirdPoints],
  *,
  temperature: float,
  weights: Mapping[str, float],
  stop_gradient: bool = False,
  replicate: Callable[[Array], Array] = lambda x: x,
) -> tuple[Array, Metrics]:
  """The language contrastive loss: no third point prefers one language.

  For a pair (i, j) and a third point k, d = (s(z_i, z_k) - s(z_j, z_k)) /
  temperature and the loss is softplus(d) + softplus(-d) = 2 ln 2 +
  2 log cosh(d / 2). The mean is taken over each kind of third points, and the
  loss is the weighted mean of the kinds. A third point never has the text of
  i or j, and is not encoded like them. Its gradient, tanh(d / 2) (z_i - z_j) /
  temperature, takes the language direction out of it.

  Args:
    sentences: [N, 2, D].
    text: Text ids, int32 [N, 2].
    sequence: Their sequences, int32 [N, 2].
    third_points: Kind ("parallel", "passages", "monolingual") to its points.
    temperature: Divides the differences of cosines.
    weights: Kind to its weight, at least for these kinds. A kind all of whose
      points are left out counts with an excess of 0.
    stop_gradient: Ablation: the third points get no gradient.
    replicate: Applied to the third points: the place for a sharding constraint.

  Returns:
    The loss, a scalar in nats of which 2 ln 2 is the minimum, and the metrics
    "excess" over 2 ln 2, "rms_difference" (root mean square of s(z_i, z_k) -
    s(z_j, z_k), without the temperature) and "masked" (pairs of a translation
    and a third point that were left out for their text).
  """

  def is_a_side(points, sides):  # int32 [K], [N, 2] -> bool [N, K].
    return jnp.any(sides[:, :, None] == points[None, None, :], axis=1)

  difference = sentences[:, 0] - sentences[:, 1]
  weighted_excess, squares, count, masked = 0.0, 0.0, 0.0, 0
  for kind, points in third_points.items():
    embeddings = replicate(points.embeddings)
    if stop_gradient:
      embeddings = jax.lax.stop_gradient(embeddings)
    same = is_a_side(points.text, text) | is_a_side(points.sequence, sequence)
    use = points.valid[None, :] & ~same
    differences = _scores(difference, embeddings)  # [N, K]
    excess = two_log_cosh_half(differences / temperature)
    weighted_excess += weights[kind] * _masked_mean(excess, use)
    squares += jnp.where(use, jnp.square(differences), 0).sum()
    count += _count(use)
    masked += (same & points.valid[None, :]).sum()
  excess = weighted_excess / sum(weights[kind] for kind in third_points)
  rms = jnp.sqrt(squares / jnp.maximum(count, 1))
  return excess + LANGUAGE_MINIMUM, {
    "excess": excess,
    "rms_difference": rms,
    "masked": masked,
  }


def masked_lm_sums(
  score: Callable[[Array], Array],
  states: Array,
  targets: Array,
  valid: Array,
  *,
  chunks: int = 1,
) -> dict[str, Array]:
  """Masked language modelling: sums of -log softmax at the true tokens.

  Devlin et al. (2019). Scores over a vocabulary are larger than all else in a
  step, so they are made for a part of the texts at a time, forward and again
  backward.

  Args:
    score: States [m, K, D] -> scores of all tokens [m, K, V], float32 or
      wider.
    states: At the masked places, [M, K, D].
    targets: The true tokens, int32 [M, K].
    valid: bool [M, K]; False where a text has fewer masked places.
    chunks: Into how many parts the texts are folded; it divides M.

  Returns:
    Sums over the valid places: "loss"; "right", places where no token has a
    higher score than the true one; and "targets", how many there are.
  """

  @jax.checkpoint
  def sums(part):
    states, targets, valid = part
    scores = score(states)
    at_target = jnp.take_along_axis(scores, targets[..., None], axis=-1)
    at_target = at_target[..., 0]
    losses = jax.nn.logsumexp(scores, axis=-1) - at_target
    right = at_target >= scores.max(axis=-1)
    return {
      "loss": jnp.where(valid, losses, 0).sum(),
      "right": jnp.where(valid, right, 0).sum().astype(losses.dtype),
      "targets": valid.sum().astype(losses.dtype),
    }

  parts = jax.tree.map(
    lambda x: x.reshape(chunks, -1, *x.shape[1:]), (states, targets, valid)
  )
  return jax.tree.map(jnp.sum, jax.lax.map(sums, parts))


def masked_lm_loss(sums: dict[str, Array]) -> tuple[Array, Metrics]:
  """The mean of the losses that `masked_lm_sums` added up.

  Returns:
    The loss, 0 without any target, and the metrics "accuracy", a share, and
    "targets", how many there are.
  """
  count = jnp.maximum(sums["targets"], 1)
  return sums["loss"] / count, {
    "accuracy": sums["right"] / count,
    "targets": sums["targets"],
  }


@jax.custom_jvp
def two_log_cosh_half(d: Array) -> Array:
  """2 log cosh(d / 2): exact 0 at 0, accurate near it, finite far from it."""
  magnitude = jnp.abs(d)
  near = jnp.log1p(jnp.square(jnp.sinh(jnp.minimum(magnitude, 2) / 2)))
  far = magnitude - LANGUAGE_MINIMUM + 2 * jnp.log1p(jnp.exp(-magnitude))
  return jnp.where(magnitude < 2, near, far)


@two_log_cosh_half.defjvp
def _two_log_cosh_half_jvp(primals, tangents):
  (d,), (tangent,) = primals, tangents
  return two_log_cosh_half(d), jnp.tanh(d / 2) * tangent


def effective_rank(embeddings: Array) -> Array:
  """How many directions the embeddings [n, D] spread over, at most D.

  The participation ratio (sum of eigenvalues)^2 / sum of squared eigenvalues
  of their covariance: like the entropy-based effective rank it is D for equal
  eigenvalues and 1 for a line, and it needs no eigendecomposition, which would
  stall a TPU at each step.
  """
  centred = embeddings - embeddings.mean(axis=0)
  covariance = _scores(centred.T, centred.T)
  trace = jnp.trace(covariance)
  return jnp.square(trace) / jnp.maximum(
    jnp.square(covariance).sum(), jnp.finfo(covariance.dtype).tiny
  )


def _count(use: Array) -> Array:
  """How many are used; a large batch has more than int32 can hold."""
  return use.sum(axis=-1).astype(jnp.float32).sum()


def _masked_mean(values: Array, use: Array) -> Array:
  """Mean of the used values, [A, C]; 0 where none is used."""
  return jnp.where(use, values, 0).sum() / jnp.maximum(_count(use), 1)
