"""The language contrastive loss: no third point prefers one language."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from mlir_jax.batches import batch as batch_lib
from mlir_jax.batches import identity
from mlir_jax.losses import base, similarity

Array = jax.Array

# The smallest language loss of a pair and a third point: both sides agree.
LANGUAGE_MINIMUM = 2 * math.log(2)


@dataclasses.dataclass(frozen=True)
class LanguageLoss(base.Loss):
  """The language contrastive loss; see `language_loss`."""

  weight: float = base.setting(1.0, "[0, 1e6]")  # w_lang; our choice.
  # Divides the differences of cosines. Our choice, independent of the IR's.
  temperature: float = base.setting(0.2, "[1e-4, 1e4]")
  # Weights of the kinds of third points. The loss is the weighted mean of the
  # mean of each kind. "parallel" are the other sentences of the parallel batch.
  parallel: float = base.setting(1.0, "[0, 1e6]")
  passages: float = base.setting(1.0, "[0, 1e6]")  # The IR passages.
  # The monolingual sentences.
  monolingual: float = base.setting(1.0, "[0, 1e6]")
  # Ablation: no gradient to the third points.
  stop_gradient: bool = base.setting(False)

  title = "language: a third point and both sentences"
  stream = "parallel"
  # The kinds of third points are fields.
  field_streams: ClassVar[Mapping[str, str]] = {
    "parallel": "parallel",
    "passages": "retrieval",
    "monolingual": "monolingual",
  }
  reads = ("sentences", "passages", "monolingual")

  def kinds(self, streams: Collection[str]) -> list[str]:
    """Returns the kinds of third points that have a weight and a stream."""
    return [
      kind
      for kind, stream in self.field_streams.items()
      if getattr(self, kind) and stream in streams
    ]

  def is_fed(self, streams: Collection[str]) -> bool:
    """See `base.Loss.is_fed`; the loss also needs third points."""
    return super().is_fed(streams) and bool(self.kinds(streams))

  def check(self, sizes: Mapping[str, int], group: str) -> None:
    """See `base.Loss.check`; a kind of third points needs a weight, too."""
    super().check(sizes, group)
    if not any(getattr(self, kind) for kind in self.field_streams):
      raise ValueError(
        f"{group} has a weight, but none of its third points has one."
      )

  def score_matrices(self, sizes: Mapping[str, int]) -> list[tuple[int, int]]:
    """See `base.Loss`: pairs x third points of each kind."""
    points = {
      "parallel": 2 * sizes["parallel"],
      "passages": sizes["retrieval"] * (1 + sizes["hard_negatives"]),
      "monolingual": sizes["monolingual"],
    }
    return [
      (sizes["parallel"], points[kind])
      for kind in self.field_streams
      if getattr(self, kind)
    ]

  def __call__(
    self,
    outputs: base.Outputs,
    batch: batch_lib.Batch,
    replicate: base.Replicate,
  ) -> tuple[Array, base.Metrics]:
    """See `base.Loss`; the metrics are those of `language_loss`."""
    kinds = self.kinds(batch.streams)
    assert batch.parallel is not None  # See `stream`.
    return language_loss(
      outputs["sentences"],
      batch.parallel.text,
      batch.parallel.sequence,
      {kind: third_points(kind, outputs, batch) for kind in kinds},
      temperature=self.temperature,
      weights={kind: getattr(self, kind) for kind in kinds},
      stop_gradient=self.stop_gradient,
      replicate=replicate,
    )


class ThirdPoints(NamedTuple):
  """Sentences that should be equally far from both sides of a translation.

  Attributes:
    embeddings: [K, D].
    text: Text hashes, int32 [K, 2]; see `batches.identity`.
    sequence: Their sequence hashes, int32 [K, 2]; -1 if their role is not that
      of the translations.
    valid: bool [K]; False for padding.
  """

  embeddings: Array
  text: Array
  sequence: Array
  valid: Array


def third_points(
  kind: str, outputs: base.Outputs, batch: batch_lib.Batch
) -> ThirdPoints:
  """Returns the third points of "parallel", "passages" or "monolingual"."""
  if kind == "passages":
    assert batch.retrieval is not None  # See `field_streams`.
    vectors = outputs["passages"]
    text = batch.retrieval.passage_text
    sequence = jnp.full_like(text, -1)  # Passages have another role.
    valid = batch.retrieval.passage_valid
  else:
    vectors = outputs["sentences" if kind == "parallel" else kind]
    sentences = getattr(batch, kind)
    text, sequence = sentences.text, sentences.sequence
    valid = jnp.ones(text.shape[:-1], bool)
  return ThirdPoints(
    vectors.reshape(-1, vectors.shape[-1]),
    text.reshape(-1, 2),
    sequence.reshape(-1, 2),
    valid.ravel(),
  )


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
) -> tuple[Array, base.Metrics]:
  """Computes the language contrastive loss.

  For a pair (i, j) and a third point k, d = (s(z_i, z_k) - s(z_j, z_k)) /
  temperature and the loss is softplus(d) + softplus(-d) = 2 ln 2 +
  2 log cosh(d / 2). The loss is the weighted mean of the mean of each kind of
  third points. A point with the text or the sequence of i or j is left out. The
  gradient of k, tanh(d / 2) (z_i - z_j) / temperature, takes the language
  direction out of it.

  Args:
    sentences: [N, 2, D].
    text: Text hashes, int32 [N, 2, 2]; see `batches.identity`.
    sequence: Their sequence hashes, int32 [N, 2, 2].
    third_points: Kind ("parallel", "passages", "monolingual") to its points.
    temperature: Divides the differences of cosines.
    weights: Kind to its weight, at least for these kinds. A kind with no point
      that is used counts with an excess of 0.
    stop_gradient: Ablation: the third points get no gradient.
    replicate: A sharding constraint; it is applied to the third points.

  Returns:
    The loss, a scalar in nats with the minimum 2 ln 2, and the metrics "excess"
    over 2 ln 2, "rms_difference" (root mean square of s(z_i, z_k) - s(z_j,
    z_k), without the temperature) and "masked" (how many pairs of a translation
    and a third point were left out because their texts are equal).
  """

  def is_a_side(points, sides):  # int32 [K, 2], [N, 2, 2] -> bool [N, K].
    return jnp.any(identity.equal(sides[:, :, None], points), axis=1)

  difference = sentences[:, 0] - sentences[:, 1]
  weighted_excess: Any = 0.0  # Arrays from the first kind on.
  squares, count = 0.0, 0.0
  masked: Any = 0
  for kind, points in third_points.items():
    embeddings = replicate(points.embeddings)
    if stop_gradient:
      embeddings = jax.lax.stop_gradient(embeddings)
    same = is_a_side(points.text, text) | is_a_side(points.sequence, sequence)
    use = points.valid[None, :] & ~same
    differences = similarity.scores(difference, embeddings)  # [N, K]
    excess = two_log_cosh_half(differences / temperature)
    weighted_excess += weights[kind] * similarity.masked_mean(excess, use)
    squares += jnp.where(use, jnp.square(differences), 0).sum()
    count += similarity.count(use)
    masked += (same & points.valid[None, :]).sum()
  excess = weighted_excess / sum(weights[kind] for kind in third_points)
  rms = jnp.sqrt(squares / jnp.maximum(count, 1))
  return excess + LANGUAGE_MINIMUM, {
    "excess": excess,
    "rms_difference": rms,
    "masked": masked,
  }


@jax.custom_jvp
def two_log_cosh_half(d: Array) -> Array:
  """Computes 2 log cosh(d / 2): exact at 0, accurate near 0, always finite."""
  magnitude = jnp.abs(d)
  near = jnp.log1p(jnp.square(jnp.sinh(jnp.minimum(magnitude, 2) / 2)))
  far = magnitude - LANGUAGE_MINIMUM + 2 * jnp.log1p(jnp.exp(-magnitude))
  return jnp.where(magnitude < 2, near, far)


@two_log_cosh_half.defjvp
def _two_log_cosh_half_jvp(primals, tangents):
  (d,), (tangent,) = primals, tangents
  return two_log_cosh_half(d), jnp.tanh(d / 2) * tangent
