"""The fields of a config on the command line: --config.FIELD=VALUE."""

import difflib
import re
from collections.abc import Sequence

import ml_collections

from mlir_jax import config as config_lib


def take_targets(
  config: ml_collections.ConfigDict, argv: Sequence[str]
) -> None:
  """Adds the losses and evaluators that a command line names.

  Args:
    config: As its file gives it.
    argv: The command line; --config.loss.extra.NAME.target=MODULE:CLASS and
      --config.eval.extra.NAME=MODULE:FUNCTION.
  """
  flag = r"--?config\.(loss\.extra\.\w+\.target|eval\.extra\.\w+)(?:=(.*))?"
  for argument, following in zip(argv, [*argv[1:], ""], strict=True):
    if match := re.fullmatch(flag, argument):
      target = following if match[2] is None else match[2]
      group, _, name, *field = match[1].split(".")
      extra = config_lib.group_of_extras(config, group)
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
    config: What its --config gives; None before that is loaded, then fields of
      a user's losses and evaluators are not checked.

  Raises:
    ValueError: if there is no such field, if it is a group of fields, or if
      --config does not stand before it.
  """
  names = [
    name for name, *_ in config_lib.fields(config or config_lib.default())
  ]
  known = False
  for argument in argv:
    known = known or re.match(r"--?config(=|$)", argument)
    match = re.match(r"--?(?:no)?config\.([\w.]*)", argument)
    if not match or (known and match[1] in names):
      continue
    if known and not config and re.match(r"(loss|eval)\.extra\.", match[1]):
      continue
    if inside := [name for name in names if name.startswith(f"{match[1]}.")]:
      raise ValueError(
        f"--config.{match[1]} is a group of fields: set one of them, such as"
        f" --config.{inside[0]}=VALUE."
      )
    if instead := config_lib.REPLACED.get(match[1]):
      raise ValueError(
        f"--config.{match[1]} does not exist any more: {instead}."
      )
    if match[1] not in names:
      last = {name.rpartition(".")[2]: name for name in reversed(names)}
      close = difflib.get_close_matches(match[1], names, 1) or [
        last[name]
        for name in difflib.get_close_matches(
          match[1].rpartition(".")[2], last, 1
        )
      ]
      hint = f" Did you mean --config.{close[0]}?" if close else ""
      raise ValueError(f"--config.{match[1]}: there is no such field.{hint}")
    raise ValueError(f"Give --config=NAME before {argument:.200}.")
