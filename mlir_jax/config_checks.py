"""Makes a config ready for a run, or refuses it."""

import os
import re
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections

from mlir_jax import config as config_lib
from mlir_jax import extensions

_KINDS = {bool: "True or False", str: "a text"}


def _losses() -> types.ModuleType:
  """Imports the losses where they are used, so that --help needs no jax."""
  from mlir_jax.losses import registry

  return registry


def ranges(extra: Any = types.MappingProxyType({})) -> dict[str, str]:
  """Returns the range of each number, those of the losses' fields, too.

  Args:
    extra: The part loss.extra of a config, for the fields of a user's losses.
  """
  losses = _losses().settings(extra).items()
  return config_lib.RANGES | {
    name: each.interval for name, each in losses if each.interval
  }


def choices(extra: Any = types.MappingProxyType({})) -> dict[str, Any]:
  """Returns the words that a field may be; `extra` is that of `ranges`."""
  losses = _losses().settings(extra).items()
  return config_lib.CHOICES | {
    name: each.choices for name, each in losses if each.choices
  }


def extras(
  config: ml_collections.ConfigDict, group: str = "loss.extra"
) -> ml_collections.ConfigDict:
  """Returns the part of a config that names losses, or others of the user.

  Args:
    config: A config, perhaps with wrong values.
    group: "loss.extra", or one of `config.NAMED`.

  Raises:
    ValueError: if it is not a group.
  """
  extra = ml_collections.ConfigDict()
  first, _, second = group.partition(".")
  if first in config and second in config[first]:
    extra = config[first][second]
  if not isinstance(extra, ml_collections.ConfigDict):
    raise ValueError(f"{group} is {extra!r}; it must be a group by name.")
  return extra


def complete(config: ml_collections.ConfigDict) -> None:
  """Gives a user's losses the fields that the config leaves out.

  It imports the modules that loss.extra names.

  Raises:
    ValueError: if a loss cannot be imported or is not a loss.
  """
  extra = extras(config)
  for name, given in list(extra.items()):
    loss = _losses().find(name, given)
    known = _losses().settings_of(loss)
    group = ml_collections.ConfigDict(
      {"target": given.target}
      | {field: each.default for field, each in known.items()}
    )
    for field, value in given.items():
      try:
        group[field] = value
      except TypeError:  # `check` refuses it.
        with group.ignore_type():
          group[field] = value
    with extra.unlocked():
      extra[name] = group


def expand_paths(config: ml_collections.ConfigDict) -> None:
  """Replaces "~" at the start of the fields that are paths."""
  config.update_from_flattened_dict(
    {
      name: os.path.expanduser(value)
      for name, _, value in fields(config)
      if name in config_lib.PATHS
    }
  )


def fields(
  group: ml_collections.ConfigDict, prefix: str = ""
) -> Iterator[tuple[str, type, Any]]:
  """Yields the name ("optim.b1"), type and value of each field."""
  for key, value in group.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from fields(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", group.get_type(key), value


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses a config with a value that no run can use.

  It checks each field alone. `training.checks` compares fields with each other.

  Raises:
    ValueError: if a field is missing or unknown, has another type, is out of
      its range, or is not one of its choices; it names the field.
  """
  known = {
    name: (kind, value) for name, kind, value in fields(config_lib.default())
  }
  found = {name: value for name, _, value in fields(config)}
  extra = extras(config)
  intervals, words = ranges(extra), choices(extra)
  for name, each in _losses().settings(extra).items():
    # A field that a config leaves out of a user's loss has its default.
    if name in found or name in known:
      known[name] = each.kind, each.default
  for group in config_lib.NAMED:
    for name in extras(config, group):
      known[f"{group}.{name}"] = str, ""
  for name in config_lib.REPLACED.keys() & found.keys() - known.keys():
    raise ValueError(
      f"{name} does not exist any more: {config_lib.REPLACED[name]}."
    )
  if missing := known.keys() - found.keys():
    raise ValueError(
      f"The config has no {', '.join(sorted(missing))}: start from"
      " mlir_jax.config.default()."
    )
  if unknown := found.keys() - known.keys():
    raise ValueError(
      f"The config has fields that do not exist: {', '.join(sorted(unknown))}."
    )
  for name, (kind, value) in known.items():
    if not (value is None and found[name] is None):
      _check_field(
        name, kind, found[name], intervals.get(name, ""), words.get(name, ())
      )


def _check_field(
  name: str, kind: type, value: Any, interval: str, words: Sequence[str]
) -> None:
  """Raises ValueError if a field may not have this value.

  Args:
    name: The field.
    kind: bool, int, float or str.
    value: Its value.
    interval: The range of a number; "" for any finite number.
    words: The choices of a text; empty for any text.
  """
  interval = interval or f"[-{sys.float_info.max}, {sys.float_info.max}]"
  allowed = (int, float) if kind is float else kind
  # In Python, True is an integer, too.
  right = isinstance(value, allowed) and (
    kind is bool or not isinstance(value, bool)
  )
  if kind in (int, float):
    right = right and _is_inside(value, interval)
    expected = re.sub(r"[\[(]", r"in \g<0>", interval)
    expected += ", an integer" if kind is int else ""
  elif words:
    may_be_code = name in config_lib.TARGETS
    right = right and (
      value in words or (may_be_code and extensions.is_target(value))
    )
    expected = f"one of {', '.join(words)}"
    expected += " or MODULE:FUNCTION" if may_be_code else ""
  else:
    expected = _KINDS[kind]
    if kind is str and isinstance(value, str):
      right = _is_text(value)
      expected += " of Unicode without zero bytes"
  if not right:
    if isinstance(value, int) and value.bit_length() > 100:
      value = f"an integer of {value.bit_length()} bits"
    elif not isinstance(value, bool | int | float):
      value = repr(value)
    raise ValueError(f"{name} is {value}; it must be {expected}.")


def _is_text(value: str) -> bool:
  """Whether a text can be stored: it is Unicode and has no zero byte.

  Bytes of a command line that are not UTF-8 become lone surrogates.
  """
  return "\0" not in value and not re.search("[\ud800-\udfff]", value)


def _is_inside(value: float, interval: str) -> bool:
  """Whether a number is in an interval or a list of them: "-1 or [1, 5)"."""
  for part in interval.split(" or "):
    if part[0] not in "[(":
      if value == float(part):
        return True
      continue
    lower, upper = map(float, part[1:-1].split(","))
    above = lower <= value if part[0] == "[" else lower < value
    below = value <= upper if part[-1] == "]" else value < upper
    if above and below:
      return True
  return False
