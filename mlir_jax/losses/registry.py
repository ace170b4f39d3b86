"""The losses by name, and how a config becomes losses."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mlir_jax.losses import base, ir, language, masked_lm, semantic

# Total = w_ir IR + w_sem semantic + w_lang language + w_mlm masked_lm.
BUILT_IN: dict[str, type[base.Loss]] = {
  "ir": ir.IrLoss,
  "semantic": semantic.SemanticLoss,
  "language": language.LanguageLoss,
  "masked_lm": masked_lm.MaskedLmLoss,
}


def defaults() -> dict[str, dict[str, Any]]:
  """The part `loss` of the config: each loss's fields with their defaults."""
  return {
    name: {field.name: field.default for field in dataclasses.fields(loss)}
    for name, loss in BUILT_IN.items()
  }


def allowed(kind: str) -> dict[str, Any]:
  """What the fields of the built-in losses may be.

  Args:
    kind: "interval" for numbers, "choices" for words.

  Returns:
    "loss.ir.weight" to that, for the fields that say it.
  """
  return {
    f"loss.{name}.{field.name}": field.metadata[kind]
    for name, loss in BUILT_IN.items()
    for field in dataclasses.fields(loss)
    if field.metadata[kind]
  }


def make(config: Mapping[str, Any]) -> dict[str, base.Loss]:
  """Makes the losses of a run.

  Args:
    config: The part `loss` of the run's config.

  Returns:
    Name to loss, those without a weight, too: they are measured.
  """
  return {name: loss(**config[name]) for name, loss in BUILT_IN.items()}


def check(losses: Mapping[str, base.Loss], sizes: Mapping[str, int]) -> None:
  """Refuses losses that the batch cannot feed.

  Args:
    losses: From `make`.
    sizes: Each stream's rows in a global batch, and "hard_negatives".

  Raises:
    ValueError: naming the field to change.
  """
  if not any(loss.weight for loss in losses.values()):
    raise ValueError("All of loss.*.weight are 0: there is nothing to learn.")
  for name, loss in losses.items():
    if loss.weight:
      loss.check(sizes, f"loss.{name}")


def need_unit_vectors(losses: Mapping[str, base.Loss]) -> bool:
  """Whether one that has a weight compares vectors of unit length."""
  return any(loss.weight and loss.unit_vectors for loss in losses.values())


def fields_without(stream: str) -> list[str]:
  """The fields that a config sets to 0 where it sets batch.STREAM to 0."""
  names = []
  for name, loss in BUILT_IN.items():
    if loss.stream == stream:
      names.append(f"loss.{name}.weight")
      continue
    names += [
      f"loss.{name}.{field}"
      for field, needed in loss.field_streams.items()
      if needed == stream
    ]
  return names
