"""The distillation loss: both sides of a translation learn a teacher's vector.

It is that of Reimers and Gurevych (2020, arXiv 2004.09813).
"""

import dataclasses
from collections.abc import Collection

import jax
import jax.numpy as jnp

from mlir_jax.batches import batch as batch_lib
from mlir_jax.losses import base, similarity

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class DistillationLoss(base.Loss):
  """The distillation loss; see `distillation_loss`.

  Without a weight there is no teacher, so the loss is not measured.
  """

  weight: float = base.setting(0.0, "[0, 1e6]")  # w_dist.
  # A frozen model: a run, an export, a sentence-transformers folder or a hub
  # name. "" is the model that the run starts from, model.pretrained; it encodes
  # as the run does. Its vectors are computed once and kept.
  teacher: str = base.setting("")
  # As model.revision: a branch, tag or commit of a hub name, or a run's "last",
  # "best" or step.
  teacher_revision: str = base.setting("")
  # The teacher reads the side in this language. Translations without such a
  # side have no part in the loss.
  language: str = base.setting("en")

  title = "distillation: both sentences and a teacher's vector"
  stream = "parallel"
  reads = ("sentences",)
  nested = False  # A teacher's first numbers say nothing by themselves.

  def is_fed(self, streams: Collection[str]) -> bool:
    """See `base.Loss.is_fed`; without a weight there is no teacher."""
    return super().is_fed(streams) and self.weight > 0

  def __call__(
    self,
    outputs: base.Outputs,
    batch: batch_lib.Batch,
    replicate: base.Replicate,
  ) -> tuple[Array, base.Metrics]:
    """See `base.Loss`; the metrics are those of `distillation_loss`."""
    del replicate  # A pair is compared with its own teacher's vector alone.
    assert batch.parallel is not None  # See `stream`.
    teacher, sentences = batch.parallel.teacher, outputs["sentences"]
    if teacher is None:
      raise ValueError(
        "The batch has no vectors of a teacher: a run has one teacher, that of"
        " loss.distillation.teacher."
      )
    if teacher.shape[-1] != sentences.shape[-1]:
      raise ValueError(
        f"The teacher's vectors have {teacher.shape[-1]} numbers, those of the"
        f" run {sentences.shape[-1]}: choose another loss.distillation.teacher,"
        " or a model.projection_size or an encoding.truncate_dim that gives"
        " both the same width."
      )
    return distillation_loss(sentences, teacher)


def distillation_loss(
  sentences: Array, teacher: Array
) -> tuple[Array, base.Metrics]:
  """Computes the distillation loss.

  With the teacher's vector t of one side of a translation, and the vectors z_0
  and z_1 of both sides, it is the mean of |z - t|^2 over both sides of all
  translations that have such a t. For vectors of unit length, |z - t|^2 is
  2 - 2 s(z, t). This is the mean squared error of Reimers and Gurevych times
  the width D: so the loss has one scale for models of any width.

  Args:
    sentences: [N, 2, D]; the second axis holds the two sides.
    teacher: Of unit length, of any float type, [N, D]; 0 for a pair of which
      the teacher reads no side.

  Returns:
    The loss, a scalar between 0 and 4, 0 without any teacher's vector, and the
    metrics "cosine" (the mean s(z, t)) and "pairs" (the number of translations
    that have a teacher's vector).
  """
  has_teacher = jnp.any(teacher != 0, axis=-1)  # [N]
  target = teacher.astype(jnp.promote_types(sentences.dtype, jnp.float32))
  target = target[:, None]  # [N, 1, D]
  use = jnp.broadcast_to(has_teacher[:, None], sentences.shape[:2])
  squares = jnp.square(sentences - target).sum(axis=-1)  # [N, 2]
  cosines = jnp.sum(sentences * target, axis=-1)
  return similarity.masked_mean(squares, use), {
    "cosine": similarity.masked_mean(cosines, use),
    "pairs": has_teacher.sum(),
  }
