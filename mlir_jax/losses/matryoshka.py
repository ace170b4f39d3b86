"""Computes a loss at several widths of its vectors: Matryoshka learning.

The first numbers of a vector then are a good vector, too (Kusupati et al. 2022,
arXiv 2205.13147). It applies to all losses that compare vectors, those of the
user included: see `base.Loss.nested`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mlir_jax.batches import batch as batch_lib
from mlir_jax.losses import base, similarity

# The field of the config that names the widths.
FIELD = "loss.matryoshka.dimensions"


def parse(dimensions: str) -> tuple[int, ...]:
  """Reads widths: "256, 128, 64" is (256, 128, 64), and "" is ().

  Raises:
    ValueError: if they are not different whole numbers above 0.
  """
  parts = [part.strip() for part in dimensions.split(",")] if dimensions else []
  good = all(part.isascii() and part.isdecimal() for part in parts)
  widths = tuple(int(part) for part in parts) if good else ()
  if not good or not all(widths) or len(set(widths)) < len(widths):
    raise ValueError(
      f"{FIELD} is {dimensions!r}; it must be different whole numbers above 0"
      " with ',' between them, such as '256,128,64', or ''."
    )
  return widths


def check(dimensions: Sequence[int], width: int) -> None:
  """Raises ValueError if a vector has no more numbers than a dimension."""
  for each in dimensions:
    if each >= width:
      raise ValueError(
        f"{FIELD} has {each}, but a vector of the run has {width} numbers: give"
        " smaller numbers only. The whole vector is always trained, too."
      )


def compute(
  loss: base.Loss,
  outputs: base.Outputs,
  batch: batch_lib.Batch,
  replicate: base.Replicate,
  dimensions: Sequence[int] = (),
) -> tuple[jax.Array, base.Metrics]:
  """Computes a loss on whole vectors and on their first numbers.

  A cut vector is scaled to unit length again if the loss compares vectors of
  unit length.

  Args:
    loss: The loss.
    outputs: As in `base.Loss.__call__`.
    batch: As in `base.Loss.__call__`.
    replicate: As in `base.Loss.__call__`.
    dimensions: Widths below that of the vectors; () for whole vectors alone. A
      loss that is not nested ignores them.

  Returns:
    The mean of the loss over all widths, the whole one included, so that its
    weight means the same for any number of widths. The metrics are those of
    whole vectors; if there are dimensions, "whole" is the loss of whole
    vectors, and "first_64" that of their first 64 numbers.
  """
  value, metrics = loss(outputs, batch, replicate)
  if not (dimensions and loss.nested):
    return value, metrics
  check(dimensions, next(iter(outputs.values())).shape[-1])
  values = {"whole": value}
  for width in dimensions:
    cut = {name: vectors[..., :width] for name, vectors in outputs.items()}
    if loss.unit_vectors:
      cut = {name: similarity.unit(vectors) for name, vectors in cut.items()}
    values[f"first_{width}"], _ = loss(cut, batch, replicate)
  return jnp.stack(list(values.values())).mean(), metrics | values
