"""The semantic contrastive loss: a sentence finds its translation."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from mlir_jax.batches import batch as batch_lib
from mlir_jax.losses import base, similarity

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class SemanticLoss(base.Loss):
  """The semantic contrastive loss; see `semantic_loss`."""

  weight: float = base.setting(1.0, "[0, 1e6]")  # w_sem; our choice.
  # Divides the cosines. Our choice.
  temperature: float = base.setting(0.05, "[1e-4, 1e4]")

  title = "semantic: a sentence and its translation"
  stream = "parallel"
  reads = ("sentences",)

  def check(self, sizes: Mapping[str, int], group: str) -> None:
    """See `base.Loss.check`; and a sentence needs a negative."""
    super().check(sizes, group)
    if sizes["parallel"] == 1:
      raise ValueError(
        "batch.parallel is 1: no sentence has a negative, so the semantic loss"
        f" is always 0. Set batch.parallel to 2 or more, or {group}.weight=0."
      )

  def score_matrices(self, sizes: Mapping[str, int]) -> list[tuple[int, int]]:
    """Sentences x sentences."""
    return [(2 * sizes["parallel"], 2 * sizes["parallel"])]

  def __call__(
    self,
    outputs: base.Outputs,
    batch: batch_lib.Batch,
    replicate: base.Replicate,
  ) -> tuple[Array, base.Metrics]:
    """See `base.Loss`; the metrics are those of `semantic_loss`."""
    assert batch.parallel is not None  # See `stream`.
    return semantic_loss(
      outputs["sentences"],
      batch.parallel.sequence,
      temperature=self.temperature,
      replicate=replicate,
    )


def semantic_loss(
  sentences: Array,
  sequence: Array,
  *,
  temperature: float,
  replicate: Callable[[Array], Array] = lambda x: x,
) -> tuple[Array, base.Metrics]:
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

  cosines = similarity.scores(embeddings, replicate(embeddings))
  # `related` holds for the sentence itself too.
  losses = similarity.cross_entropy(
    cosines / temperature, translation, ~related
  )
  best = jnp.argmax(
    jnp.where(~related | is_translation, cosines, -jnp.inf), axis=1
  )
  return losses.mean(), {
    "accuracy": (best == translation).mean(),
    "masked": (related & ~itself & ~is_translation).sum(),
    "sentences_without_negatives": related.all(axis=1).sum(),
    "mean_cosine": similarity.masked_mean(cosines, ~related),
    "effective_rank": similarity.effective_rank(embeddings),
  }
