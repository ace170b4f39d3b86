"""What every loss is: settings, what it reads of a batch, and a formula."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from mlir_jax.batches import batch as batch_lib

PyTree = Any
# The outputs: what was encoded of a batch, by name. With B question-passage
# pairs, C - 1 hard negatives each, N sentence pairs, M sentences and vectors of
# D numbers, of unit length unless the encoding contract says otherwise:
OUTPUTS = (
  "queries",  # float32 [B, D].
  "passages",  # float32 [B, C, D], the positive first.
  "sentences",  # float32 [N, 2, D], both sides of each translation.
  "monolingual",  # float32 [M, D].
  "masked",  # [R, K, D] of each bucket: the last states at masked places.
  "vocabulary",  # `masked_lm.Vocabulary`: what scores tokens there.
)
# A batch has those of its streams.
Outputs = Mapping[str, PyTree]
Metrics = dict[str, jax.Array]
# A sharding constraint: makes its argument whole on every device.
Replicate = Callable[[jax.Array], jax.Array]


def setting(
  default: Any, interval: str = "", choices: Sequence[str] = ()
) -> Any:
  """A field of a loss: a setting of the config.

  Args:
    default: Its default: a bool, int, float or str, which is its type, too.
    interval: What a number may be: "[0, 1)", "-1 or [1, 5]". All ends are
      finite.
    choices: What a text may be.
  """
  return dataclasses.field(
    default=default, metadata={"interval": interval, "choices": tuple(choices)}
  )


def check_result(name: str, value: Any, metrics: Any) -> None:
  """Refuses what a loss may not return.

  Args:
    name: The loss's.
    value: Its value.
    metrics: Its own metrics.

  Raises:
    ValueError: if one is not a scalar; it names it.
  """
  for label, number in {f"loss/{name}": value, **metrics}.items():
    if jnp.shape(number):
      raise ValueError(
        f"The loss {name} returns {label} of shape {jnp.shape(number)}; the"
        " loss and its metrics must be scalars."
      )


@dataclasses.dataclass(frozen=True)
class Loss:
  """A loss. Its fields are its settings: loss.NAME.FIELD in the config.

  A subclass is a frozen dataclass whose fields are made by `setting`, with the
  class attributes below and `__call__`.

  Attributes:
    title: In words, for the model card, which names a user's by its target.
    stream: The stream of the batch that it cannot do without: "retrieval",
      "parallel", "monolingual" or "masked".
    field_streams: Fields that need a stream where they are not 0.
    reads: The names of the outputs that it reads; see `OUTPUTS`.
    unit_vectors: Whether it compares vectors of unit length.
  """

  weight: float = setting(1.0, "[0, 1e6]")  # In the total; 0 measures alone.

  title: ClassVar[str] = ""
  stream: ClassVar[str]
  field_streams: ClassVar[Mapping[str, str]] = {}
  reads: ClassVar[tuple[str, ...]]
  unit_vectors: ClassVar[bool] = True

  def is_fed(self, streams: Collection[str]) -> bool:
    """Whether a batch with these streams has what it cannot do without."""
    return self.stream in streams

  def check(self, sizes: Mapping[str, int], group: str) -> None:
    """Refuses settings that a batch cannot feed; asked if it has a weight.

    Args:
      sizes: Each stream's rows in a global batch, and "hard_negatives".
      group: Its place in the config, for messages: "loss.ir".

    Raises:
      ValueError: naming the field to change.
    """
    if not sizes[self.stream]:
      raise ValueError(
        f"{group}.weight is {self.weight}, but batch.{self.stream} is 0: set"
        " the weight to 0 or the batch above it."
      )
    for field, stream in self.field_streams.items():
      if getattr(self, field) and not sizes[stream]:
        raise ValueError(
          f"{group}.{field} is {getattr(self, field)}, but batch.{stream} is 0:"
          " set one or the other."
        )

  def score_matrices(self, sizes: Mapping[str, int]) -> list[tuple[int, int]]:
    """The matrices of inner products that it makes: (rows, columns) each.

    The planner counts their operations.

    Args:
      sizes: As in `check`.
    """
    del sizes
    return []

  def __call__(
    self, outputs: Outputs, batch: batch_lib.Batch, replicate: Replicate
  ) -> tuple[jax.Array, Metrics]:
    """Computes the loss of a global batch.

    Args:
      outputs: Those of `reads` that the batch has.
      batch: The batch; see `batches.batch`.
      replicate: For the candidates: the place for a sharding constraint.

    Returns:
      The loss, a float32 scalar, and its own metrics, scalars by name.
    """
    raise NotImplementedError
