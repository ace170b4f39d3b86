"""The flags that several programs have: paths, --config, --workdir."""

import os
import re
from collections.abc import Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from mlir_jax import config_checks, config_files
from mlir_jax.command_line import config_fields, refusal

# --help shows a flag as one of the program that calls a `define_…` function.
flags.disclaim_key_flags()


class _PathParser(flags.ArgumentParser):
  """Parses a path; an unset shell variable gives an empty one."""

  def parse(self, argument: str) -> str:
    if not argument.strip():
      raise ValueError("the path is empty; is a shell variable not set?")
    if not argument.isprintable():
      raise ValueError(
        "the path has control characters or bytes that are not UTF-8."
      )
    path = os.path.expanduser(argument)
    if path.startswith("~") and not os.path.exists(path):
      raise ValueError(f"there is no user {path.partition('/')[0][1:]!r}.")
    if re.match(r"[A-Za-z]\w+:/", path) and not re.match("gs://[^/]", path):
      raise ValueError(
        "of URLs only gs://BUCKET/FOLDER is supported; or give a path."
      )
    return path


def define_path(name: str, help_text: str) -> flags.FlagHolder:
  """Defines a flag that is a path; "~" at its start is the user's home.

  Args:
    name: The flag's name.
    help_text: The text of --help.

  Returns:
    The flag; its value is None where it is not given.
  """
  return flags.DEFINE(
    _PathParser(), name, None, help_text, serializer=flags.ArgumentSerializer()
  )


class _ConfigParser(flags.ArgumentParser):
  """Loads a config by name or path; an error names the file and the line.

  Attributes:
    argv: The command line, which may name the user's losses and evaluators.
  """

  argv: Sequence[str] = ()

  def parse(self, name: str) -> ml_collections.ConfigDict:
    try:
      config = config_files.load(name)
      config_fields.add_targets(config, self.argv)
      config_checks.complete(config)
      config_fields.check_names(self.argv, config)
      return config.lock()
    except ValueError as error:  # absl would put the flag before its message.
      raise flags.Error(str(error)) from error


def parse_named(
  flag: str, values: Sequence[str], example: str
) -> dict[str, str]:
  """Returns name to text of the values NAME=TEXT of a flag.

  Args:
    flag: The flag, for messages.
    values: Its values.
    example: A value, which is shown if another one cannot be used.
  """
  found = {}
  for value in values:
    name, _, target = value.partition("=")
    if not (name and target):
      raise ValueError(f"{flag}={value}: give NAME=…, such as {example}.")
    if name in found:
      raise ValueError(f"{flag}={value}: {name} is given twice.")
    found[name] = target
  return found


def define_config() -> flags.FlagHolder:
  """Defines --config, a shipped config's name or a path to a file."""
  try:
    holder = config_flags.DEFINE_config_file(
      "config",
      None,
      "A shipped config's name (quickstart, quickstart:ir) or a path to a"
      " config file. Fields are set with --config.FIELD=VALUE.",
    )
  except flags.Error as error:  # ml_collections reads --flagfile here.
    refusal.refuse(config_files.one_line(error))
  flags.FLAGS["config"].parser = _ConfigParser()
  return holder


def define_workdir() -> flags.FlagHolder:
  """Defines --workdir, the run's folder."""
  return define_path(
    "workdir", "The run's folder: checkpoints, metrics, results."
  )


def define_prompt() -> flags.FlagHolder:
  """Defines --prompt, a prompt that a model was trained with."""
  return flags.DEFINE_string(
    "prompt",
    "",
    "The name of a prompt that the model was trained with: that of a source of"
    " its training data. By default, texts have the prefix of their role.",
  )


def define_revision() -> flags.FlagHolder:
  """Defines --revision, which belongs to a name on the hub."""
  return flags.DEFINE_string(
    "revision", "", "The branch, tag or commit of a name on the hub."
  )


def define_batch_size() -> flags.FlagHolder:
  """Defines --batch_size; None is the model's own."""
  return flags.DEFINE_integer(
    "batch_size",
    None,
    "Texts encoded at once.",
    lower_bound=1,
    upper_bound=1_000_000,
  )


def define_set() -> flags.FlagHolder:
  """Defines --set, tests by their names."""
  return flags.DEFINE_multi_string(
    "set",
    [],
    "Tests that a library finds by name, NAME=ir_datasets:ID; may be repeated.",
  )


def define_prefixes(several_models: bool = False) -> None:
  """Defines --query_prefix, --passage_prefix and --sentence_prefix.

  Args:
    several_models: Whether each model may have its own; then the value of a
      flag is a list.
  """
  from mlir_jax import contract  # It imports the tokenizers' library.

  define = flags.DEFINE_multi_string if several_models else flags.DEFINE_string
  named = " NAME=PREFIX is for one model; may be repeated."
  for role in contract.ROLES:
    define(
      f"{role}_prefix",
      None,
      f"What precedes each {role} text, in place of what the model says, such"
      " as 'query: '. It may be empty. A space at its end counts; in bash,"
      f" $'…\\n' has a line break.{named * several_models}",
    )


def prefixes() -> dict[str, Any]:
  """Returns the flags of `define_prefixes`, as arguments of `model.load`.

  A flag that is not given is None. After `define_prefixes(several_models=True)`
  the others are lists.
  """
  from mlir_jax import contract

  names = [f"{role}_prefix" for role in contract.ROLES]
  return {name: flags.FLAGS[name].value for name in names}


def refuse_prefixes(needed: str) -> None:
  """Raises ValueError if a prefix is given without the flag that it needs."""
  for name, prefix in prefixes().items():
    if prefix is not None:
      raise ValueError(f"--{name} needs {needed}.")


CHECKPOINT_HELP = (
  'The checkpoint of a run: "last", "best" on dev, a step, or "average:N" for'
  " the mean of the parameters of the last N."
)


def define_truncate_dim() -> flags.FlagHolder:
  """Defines --truncate_dim, the numbers that are kept of each vector."""
  return flags.DEFINE_integer(
    "truncate_dim",
    0,
    "Keep the first so many numbers of each vector; 0: as many as the model's"
    " contract says.",
    lower_bound=0,
  )


def parse(argv: Sequence[str]) -> list[str]:
  """Parses all flags; checks the config and expands its paths.

  Args:
    argv: The command line, whose first element is the program.

  Returns:
    The program and the arguments that are not flags.

  Raises:
    ValueError, flags.Error: if a flag is wrong; it says what to do.
  """
  values = flags.FLAGS
  # A file after --flagfile may name the user's code and fields of the config.
  given = values.read_flags_from_files(argv[1:], force_gnu=False)
  argv = [argv[0], *given]
  if "config" in values:
    config_fields.check_names(argv)
    _ConfigParser.argv = argv
  files = values(argv)
  if "config" in values and values["config"].present:
    config_checks.check(values.config)
    config_checks.expand_paths(values.config)
  return files
