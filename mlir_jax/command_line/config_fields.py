"""Config fields on the command line: --config.FIELD=VALUE."""

import difflib
import re
from collections.abc import Sequence

import ml_collections

from mlir_jax import config as config_lib
from mlir_jax import config_checks

_OF_USER = tuple(f"{group}." for group in ("loss.extra", *config_lib.NAMED))


def add_targets(config: ml_collections.ConfigDict, argv: Sequence[str]) -> None:
  """Adds the losses, evaluators and formats that a command line names.

  Args:
    config: What the config file returns.
    argv: The command line. It reads --config.loss.extra.NAME.target=
      MODULE:CLASS, --config.eval.extra.NAME=MODULE:FUNCTION and
      --config.data.formats.NAME=MODULE:CLASS.

  Raises:
    ValueError: if the config file gives such a field a wrong type.
  """
  named = "|".join(map(re.escape, config_lib.NAMED))
  flag = rf"--?config\.(loss\.extra\.\w+\.target|({named})\.\w+)(?:=(.*))?"
  for argument, following in zip(argv, [*argv[1:], ""], strict=True):
    if match := re.fullmatch(flag, argument, re.DOTALL):  # Of prompts.
      target = following if match[3] is None else match[3]
      group, kind, name, *field = match[1].split(".")
      extra = config_checks.extras(config, f"{group}.{kind}")
      with extra.unlocked():
        if not field:
          extra[name] = target
          continue
        if name not in extra:
          extra[name] = ml_collections.ConfigDict()
        if not isinstance(extra[name], ml_collections.ConfigDict):
          raise ValueError(
            f"loss.extra.{name} is {extra[name]!r}; it must be a group of"
            " fields: {'target': 'MODULE:CLASS', ...}."
          )
        extra[name].target = target


def check_names(
  argv: Sequence[str], config: ml_collections.ConfigDict | None = None
) -> None:
  """Checks the names of the fields that a command line sets.

  Args:
    argv: The command line.
    config: The config after --config, with the user's losses. None before it
      is loaded: fields of the user's losses and evaluators are then not
      checked.

  Raises:
    ValueError: if there is no such field, if it is a group of fields, or if
      --config does not come first.
  """
  names = [
    name for name, *_ in config_checks.fields(config or config_lib.default())
  ]
  has_config = False
  for argument in argv:
    has_config = has_config or re.match(r"--?config(=|$)", argument)
    match = re.match(r"--?(?:no)?config\.([\w.]*)", argument)
    if not match:
      continue
    field = match[1]
    if has_config and (
      field in names or (not config and field.startswith(_OF_USER))
    ):
      continue
    if inside := [name for name in names if name.startswith(f"{field}.")]:
      raise ValueError(
        f"--config.{field} is a group of fields: set one of them, such as"
        f" --config.{inside[0]}=VALUE."
      )
    if instead := config_lib.REPLACED.get(field):
      raise ValueError(f"--config.{field} does not exist any more: {instead}.")
    if field not in names:
      raise ValueError(
        f"--config.{field}: there is no such field.{_suggest(field, names)}"
      )
    raise ValueError(f"Give --config=NAME before {argument:.200}.")


def _suggest(field: str, names: Sequence[str]) -> str:
  """Returns " Did you mean …?" with the most similar field, or ""."""
  close = difflib.get_close_matches(field, names, 1)
  if not close:  # The group may be missing or wrong, so compare the last part.
    last = {name.rpartition(".")[2]: name for name in reversed(names)}
    close = [
      last[name]
      for name in difflib.get_close_matches(field.rpartition(".")[2], last, 1)
    ]
  return f" Did you mean --config.{close[0]}?" if close else ""
