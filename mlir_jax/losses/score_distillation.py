"""The score distillation loss: a question ranks its passages as a teacher.

The data have the teacher's scores, such as those of a cross-encoder.
"""

import dataclasses
from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp

from mlir_jax.batches import batch as batch_lib
from mlir_jax.losses import base, similarity

Array = jax.Array

KINDS = ("kl", "margin_mse")


@dataclasses.dataclass(frozen=True)
class ScoreDistillationLoss(base.Loss):
  """The score distillation loss; see `score_distillation_loss`.

  Without a weight, the batch has no scores, so the loss is not measured.
  """

  weight: float = base.setting(0.0, "[0, 1e6]")  # w_score.
  # "kl" compares the distributions over a question's passages, as BGE does;
  # "margin_mse" the differences between the positive and each hard negative.
  kind: str = base.setting("kl", choices=KINDS)
  # Divides the cosines. Our choice.
  temperature: float = base.setting(0.05, "[1e-4, 1e4]")
  # Divides the teacher's scores.
  teacher_temperature: float = base.setting(1.0, "[1e-4, 1e4]")

  title = "score distillation: a question's passages and a teacher's scores"
  stream = "retrieval"
  reads = ("queries", "passages")

  def is_fed(self, streams: Collection[str]) -> bool:
    """See `base.Loss.is_fed`; without a weight there are no scores."""
    return super().is_fed(streams) and self.weight > 0

  def check(self, sizes: Mapping[str, int], group: str) -> None:
    """See `base.Loss.check`; a question needs two passages of its own."""
    super().check(sizes, group)
    if not sizes["hard_negatives"]:
      raise ValueError(
        f"{group}.weight is {self.weight}, but batch.hard_negatives is 0: a"
        " question has one passage, and there is nothing to rank. Set"
        f" batch.hard_negatives to 1 or more, or {group}.weight=0."
      )

  def score_matrices(self, sizes: Mapping[str, int]) -> list[tuple[int, int]]:
    """See `base.Loss`: each question with its own passages."""
    passages = sizes["retrieval"] * (1 + sizes["hard_negatives"])
    return [(passages, 1)] if self.weight else []

  def __call__(
    self,
    outputs: base.Outputs,
    batch: batch_lib.Batch,
    replicate: base.Replicate,
  ) -> tuple[Array, base.Metrics]:
    """See `base.Loss`; the metrics are those of `score_distillation_loss`."""
    del replicate  # A question is compared with its own passages alone.
    assert batch.retrieval is not None  # See `stream`.
    scores = batch.retrieval.passage_score
    if scores is None:
      raise ValueError(
        "The batch has no scores of a teacher: a run reads them if"
        " loss.score_distillation.weight is above 0."
      )
    return score_distillation_loss(
      outputs["queries"],
      outputs["passages"],
      scores,
      batch.retrieval.passage_valid,
      kind=self.kind,
      temperature=self.temperature,
      teacher_temperature=self.teacher_temperature,
    )


def score_distillation_loss(
  queries: Array,
  passages: Array,
  scores: Array,
  valid: Array,
  *,
  kind: str,
  temperature: float,
  teacher_temperature: float = 1.0,
) -> tuple[Array, base.Metrics]:
  """Computes the score distillation loss.

  For a question and its passages k that have a score t_k of the teacher, let
  y_k be s(q, p_k) / temperature, and x_k be t_k / teacher_temperature.

  - "kl": sum over k of P_k (log P_k - log Q_k), with P = softmax(x) and
    Q = softmax(y): the KL divergence with which BGE is distilled (Xiao et al.
    2023, arXiv 2309.07597), without the teacher's entropy, which is constant.
  - "margin_mse": the mean over the hard negatives k of ((y_0 - y_k) -
    (x_0 - x_k))^2, where 0 is the positive (Hofstaetter et al. 2020, arXiv
    2010.02666).

  The result is the mean over all questions that have such a value: those with
  the scores of two passages, of which "margin_mse" needs that of the positive.

  Args:
    queries: [B, D].
    passages: [B, C, D]; column 0 is the positive.
    scores: float32 [B, C]; NaN for a passage without a score.
    valid: bool [B, C], False for padding.
    kind: One of `KINDS`.
    temperature: Divides the cosines.
    teacher_temperature: Divides the scores.

  Returns:
    The loss, a scalar, 0 without any scores, and the metrics "questions" (the
    number that the mean is over) and "agreement" (the share of them whose best
    passage is that of the teacher).
  """
  use = valid & jnp.isfinite(scores)
  cosines = jnp.einsum(
    "bd,bcd->bc",
    queries,
    passages,
    precision=jax.lax.Precision.HIGHEST,
    preferred_element_type=jnp.promote_types(queries.dtype, jnp.float32),
  )
  ours = cosines / temperature
  theirs = jnp.where(use, scores, 0).astype(ours.dtype) / teacher_temperature
  if kind == "kl":
    learns = use.sum(axis=1) >= 2
    # A question without scores compares all its passages, and counts nowhere.
    compared = use | ~learns[:, None]
    log_p, log_q = (
      jax.nn.log_softmax(jnp.where(compared, x, -jnp.inf), axis=1)
      for x in (theirs, ours)
    )
    # Outside of `compared`, both are -inf.
    difference = jnp.where(compared, log_p, 0) - jnp.where(compared, log_q, 0)
    losses = (jnp.exp(log_p) * difference).sum(axis=1)
  else:
    use &= use[:, :1]
    learns = use[:, 1:].any(axis=1)
    margins = (ours[:, :1] - ours) - (theirs[:, :1] - theirs)
    squares = jnp.where(use, jnp.square(margins), 0)[:, 1:]
    losses = squares.sum(axis=1) / jnp.maximum(use[:, 1:].sum(axis=1), 1)
  best = [
    jnp.argmax(jnp.where(use, x, -jnp.inf), axis=1) for x in (ours, theirs)
  ]
  agrees = (best[0] == best[1]).astype(losses.dtype)
  return similarity.masked_mean(losses, learns), {
    "questions": learns.sum(),
    "agreement": similarity.masked_mean(agrees, learns),
  }
