"""The semantic contrastive loss: a sentence finds its translation."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from mlir_jax.batches import batch as batch_lib
from mlir_jax.batches import identity
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
    """See `base.Loss.check`; a sentence also needs a negative."""
    super().check(sizes, group)
    if sizes["parallel"] == 1:
      raise ValueError(
        "batch.parallel is 1: no sentence has a negative, so the semantic loss"
        f" is always 0. Set batch.parallel to 2 or more, or {group}.weight=0."
      )

  def score_matrices(self, sizes: Mapping[str, int]) -> list[tuple[int, int]]:
    """See `base.Loss`: sentences x sentences."""
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
  """Computes the semantic loss: NT-Xent over both sides of translations.

  The N pairs give 2N sentences, all languages mixed. For a sentence i with
  translation j, the loss is -log softmax over the other 2N - 1 sentences k of
  s(z_i, z_k) / temperature, at j. The result is the mean over all 2N. Let m be
  the translation of k. If k or m has the sequence of i or j, then k is a copy,
  or another translation of the same sentence, and it is not a negative. The
  positive itself is never masked.

  Args:
    sentences: [N, 2, D]; the second axis holds the two sides.
    sequence: Their sequence hashes, int32 [N, 2, 2]; see `batches.identity`.
    temperature: Divides the cosines.
    replicate: A sharding constraint; it is applied to the candidates.

  Returns:
    The loss, a scalar in nats, and the metrics "accuracy" (share of sentences
    whose translation scores highest), "masked" (how many pairs are left out,
    without the sentence itself), "sentences_without_negatives" (how many learn
    nothing from this loss), "mean_cosine" (of sentences that are not
    translations of each other; near 1 when the space collapses) and
    "effective_rank".
  """
  pairs = sentences.shape[0]
  embeddings = sentences.reshape(2 * pairs, -1)
  index = jnp.arange(2 * pairs)
  translation = index ^ 1

  def sides(hashes):  # Of each sentence: its own, its translation's.
    return hashes.reshape(-1, 2), hashes[:, ::-1].reshape(-1, 2)

  related = jnp.zeros((2 * pairs, 2 * pairs), bool)
  for ours in sides(sequence):
    for theirs in sides(replicate(sequence)):
      related |= identity.equal(ours[:, None], theirs)
  itself = index[:, None] == index
  is_translation = translation[:, None] == index

  cosines = similarity.scores(embeddings, replicate(embeddings))
  # `related` is also true for the sentence itself.
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
