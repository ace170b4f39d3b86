"""The losses by name: it makes the losses of a run from its config."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections

from mlir_jax import extensions
from mlir_jax.batches import batch as batch_lib
from mlir_jax.losses import (
  base,
  distillation,
  ir,
  language,
  masked_lm,
  matryoshka,
  score_distillation,
  semantic,
)

# Total = w_ir IR + w_sem semantic + w_lang language + w_mlm masked_lm + ...
BUILT_IN: dict[str, type[base.Loss]] = {
  "ir": ir.IrLoss,
  "semantic": semantic.SemanticLoss,
  "language": language.LanguageLoss,
  "masked_lm": masked_lm.MaskedLmLoss,
  "distillation": distillation.DistillationLoss,
  "score_distillation": score_distillation.ScoreDistillationLoss,
}

_BASE = "mlir_jax.losses.base.Loss"
_MAPPINGS = (Mapping, ml_collections.ConfigDict)

# A user's loss has another name than these.
_TAKEN = ("total", "loss", "grad_norm", "extra", "matryoshka", *BUILT_IN)

_KINDS = {"bool": bool, "int": int, "float": float, "str": str}


class Setting(NamedTuple):
  """A field of a loss, in the form that the config's checks need.

  Attributes:
    kind: bool, int, float or str.
    default: Its default.
    interval: The range of a number; "" for any finite number.
    choices: The words that a text may be; empty for any text.
  """

  kind: type
  default: Any
  interval: str
  choices: tuple[str, ...]


def settings_of(loss: type[base.Loss]) -> dict[str, Setting]:
  """Returns the fields of a loss by name.

  Raises:
    ValueError: if a field has no default, or its type is not in a config.
  """
  found = {}
  for field in dataclasses.fields(loss):
    # An annotation may be a text.
    kind = getattr(field.type, "__name__", field.type)
    if kind not in _KINDS or field.default is dataclasses.MISSING:
      raise ValueError(
        f"{loss.__name__}.{field.name}: a field of a loss is a bool, int, float"
        " or str with a default."
      )
    found[field.name] = Setting(
      _KINDS[kind],
      float(field.default) if kind == "float" else field.default,
      field.metadata.get("interval", ""),
      field.metadata.get("choices", ()),
    )
  return found


def defaults() -> dict[str, dict[str, Any]]:
  """Returns the part `loss` of the config: all fields with their defaults."""
  return {
    **{
      name: {field: each.default for field, each in settings_of(loss).items()}
      for name, loss in BUILT_IN.items()
    },
    "matryoshka": {"dimensions": ""},
    "extra": {},
  }


def settings(extra: Mapping[str, Any]) -> dict[str, Setting]:
  """Returns all fields of the losses: "loss.ir.weight" to its setting.

  Args:
    extra: The part `loss.extra` of the config of this command line.

  Raises:
    ValueError: if a target is not a loss; see `find`.
  """
  found = {
    f"loss.{name}.{field}": each
    for name, loss in BUILT_IN.items()
    for field, each in settings_of(loss).items()
  }
  found[matryoshka.FIELD] = Setting(str, "", "", ())
  for name, group in extra.items():
    loss = find(name, group)
    found[f"loss.extra.{name}.target"] = Setting(str, group["target"], "", ())
    for field, each in settings_of(loss).items():
      found[f"loss.extra.{name}.{field}"] = each
  return found


def find(name: str, group: Any) -> type[base.Loss]:
  """Imports a user's loss, which this command line names.

  Args:
    name: The loss's name in loss.extra.
    group: {"target": "MODULE:CLASS", a field: its value, ...}.

  Raises:
    ValueError: if the name cannot be used, or the target is not a loss.
  """
  where = f"loss.extra.{name}"
  if not re.fullmatch("[a-z][a-z0-9_]*", name) or name in _TAKEN:
    raise ValueError(
      f"{where}: give another name, of the letters a to z, digits and"
      f" underscores; {', '.join(_TAKEN)} have a meaning already."
    )
  target = group.get("target") if isinstance(group, _MAPPINGS) else None
  if target is None:
    raise ValueError(
      f"{where} has no target: give {{'target': 'MODULE:CLASS', ...}}."
    )
  loss = extensions.load(target, f"{where}.target")
  where = f"{where}.target is {target!r}, but"
  if not (isinstance(loss, type) and issubclass(loss, base.Loss)):
    raise ValueError(f"{where} that is not a subclass of {_BASE}.")
  if "__dataclass_params__" not in vars(loss):
    raise ValueError(
      f"{where} {loss.__name__} is not a dataclass: write"
      " @dataclasses.dataclass(frozen=True) above it."
    )
  if "target" in settings_of(loss):
    raise ValueError(
      f"{where} {loss.__name__} has a field 'target', which in a config names"
      " the loss: rename the field."
    )
  if getattr(loss, "stream", None) not in batch_lib.STREAMS:
    raise ValueError(
      f"{where} {loss.__name__}.stream is not one of"
      f" {', '.join(batch_lib.STREAMS)}."
    )
  reads = getattr(loss, "reads", ())
  if not reads or isinstance(reads, str) or {*reads} - {*base.OUTPUTS}:
    raise ValueError(
      f"{where} {loss.__name__}.reads is {reads!r}; it must be a tuple of"
      f" {', '.join(base.OUTPUTS)}."
    )
  return loss


def make(config: Mapping[str, Any]) -> dict[str, base.Loss]:
  """Makes the losses of a run; imports those of the user.

  Args:
    config: The part `loss` of the config of this command line.

  Returns:
    Name to loss. A loss with weight 0 is there, too: it is measured.
  """
  losses = {name: loss(**config[name]) for name, loss in BUILT_IN.items()}
  for name, group in config.get("extra", {}).items():
    fields = {field: group[field] for field in group if field != "target"}
    losses[name] = find(name, group)(**fields)
  return losses


def dimensions(config: Mapping[str, Any]) -> tuple[int, ...]:
  """Returns the widths of `loss.matryoshka`; the argument is that of `make`.

  Raises:
    ValueError: if they are not numbers; see `matryoshka.parse`.
  """
  return matryoshka.parse(config["matryoshka"]["dimensions"])


def check(losses: Mapping[str, base.Loss], sizes: Mapping[str, int]) -> None:
  """Refuses losses that do not fit the batch.

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
      prefix = "loss" if name in BUILT_IN else "loss.extra"
      loss.check(sizes, f"{prefix}.{name}")


def need_unit_vectors(losses: Mapping[str, base.Loss]) -> bool:
  """Whether a loss with a weight compares vectors of unit length."""
  return any(loss.weight and loss.unit_vectors for loss in losses.values())


def fields_without(stream: str) -> list[str]:
  """Returns the fields that must be 0 in a config with batch.STREAM=0."""
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
