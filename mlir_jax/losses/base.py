"""The base class of all losses: settings, inputs and a formula."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from mlir_jax.batches import batch as batch_lib

PyTree = Any
# The outputs: the encoded texts of a batch, by name. There are B questions, C
# passages of each question, N sentence pairs and M sentences. Vectors have D
# numbers and unit length, unless the encoding contract says otherwise.
OUTPUTS = (
  "queries",  # float32 [B, D].
  "passages",  # float32 [B, C, D], the positive first.
  "sentences",  # float32 [N, 2, D], both sides of each translation.
  "monolingual",  # float32 [M, D].
  "masked",  # [R, K, D] for each block: the last states at hidden tokens.
  "vocabulary",  # `masked_lm.Vocabulary`: scores tokens at these places.
)
# A batch has only the outputs of its streams.
Outputs = Mapping[str, PyTree]
Metrics = dict[str, jax.Array]
# A sharding constraint: it makes its argument whole on every device.
Replicate = Callable[[jax.Array], jax.Array]


def setting(
  default: Any, interval: str = "", choices: Sequence[str] = ()
) -> Any:
  """Returns a field of a loss, which is a setting of the config.

  Args:
    default: A bool, int, float or str; its type is that of the field.
    interval: The range of a number: "[0, 1)", "-1 or [1, 5]". All ends are
      finite.
    choices: The words that a text may be.
  """
  return dataclasses.field(
    default=default, metadata={"interval": interval, "choices": tuple(choices)}
  )


def check_result(name: str, value: Any, metrics: Any) -> None:
  """Raises ValueError if a result of a loss is not a scalar.

  Args:
    name: The loss's name.
    value: The loss.
    metrics: The loss's own metrics.
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

  A subclass is a frozen dataclass. It makes its fields with `setting`, and has
  the class attributes below and `__call__`.

  Attributes:
    title: A description for the model card. A user's loss needs none: the card
      shows its target.
    stream: The stream that the loss needs: "retrieval", "parallel",
      "monolingual" or "masked".
    field_streams: Field to the stream that it needs when it is not 0.
    reads: The names of the outputs that the loss reads; see `OUTPUTS`.
    unit_vectors: Whether the loss compares vectors of unit length.
    nested: Whether the loss is computed on the first numbers of vectors, too:
      see `losses.matryoshka`.
  """

  weight: float = setting(1.0, "[0, 1e6]")  # In the total; 0: only measured.

  title: ClassVar[str] = ""
  stream: ClassVar[str]
  field_streams: ClassVar[Mapping[str, str]] = {}
  reads: ClassVar[tuple[str, ...]]
  unit_vectors: ClassVar[bool] = True
  nested: ClassVar[bool] = True

  def is_fed(self, streams: Collection[str]) -> bool:
    """Whether a batch with these streams has what the loss needs."""
    return self.stream in streams

  def check(self, sizes: Mapping[str, int], group: str) -> None:
    """Refuses settings that do not fit the batch.

    It is called only if the weight is not 0.

    Args:
      sizes: Each stream's rows in a global batch, and "hard_negatives".
      group: The loss's group in the config, for messages: "loss.ir".

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
          " set the first to 0 or the second above 0."
        )

  def score_matrices(self, sizes: Mapping[str, int]) -> list[tuple[int, int]]:
    """Returns (rows, columns) of each matrix of inner products.

    The planner counts their operations.

    Args:
      sizes: See `check`.
    """
    del sizes
    return []

  def guide_matrices(self, sizes: Mapping[str, int]) -> list[tuple[int, int]]:
    """Returns (rows, columns) of each matrix of a guide's cosines.

    They have no gradient. The planner counts their operations.

    Args:
      sizes: See `check`.
    """
    del sizes
    return []

  def __call__(
    self, outputs: Outputs, batch: batch_lib.Batch, replicate: Replicate
  ) -> tuple[jax.Array, Metrics]:
    """Computes the loss of a global batch.

    Args:
      outputs: The outputs in `reads` that the batch has.
      batch: The batch; see `batches.batch`.
      replicate: A sharding constraint; apply it to the candidates.

    Returns:
      The loss, a float32 scalar, and its own metrics, scalars by name.
    """
    raise NotImplementedError
