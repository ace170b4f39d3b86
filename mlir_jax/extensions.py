"""The user's own code, by its name in the config: "MODULE:NAME".

Such code is imported only if this command line names it, in the file after
--config or with a flag. Code that a folder of somebody else names (a run, a
checkpoint, an export) is never imported: it is refused, with the flag to give.
"""

import contextlib
import hashlib
import importlib
import importlib.util
import pathlib
import re
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

_TARGET = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"


def is_target(value: Any) -> bool:
  """Whether a value has the form of a target, "my_project.losses:Margin"."""
  return isinstance(value, str) and bool(re.fullmatch(_TARGET, value))


def load(target: str, field: str) -> Any:
  """Imports the module of a target and returns the object that it names.

  Args:
    target: "MODULE:NAME".
    field: The config field with this target, for messages.

  Raises:
    ValueError: if there is no such module or name, or if the module fails; it
      names the field and, where it is known, the file and line.
  """
  where = f"{field} is {target!r}"
  if not is_target(target):
    raise ValueError(
      f"{where}; it must be MODULE:NAME, such as 'my_project.losses:Margin'."
    )
  module_name, _, name = target.partition(":")
  try:
    module = importlib.import_module(module_name)
  except Exception as error:
    missing = isinstance(error, ModuleNotFoundError) and error.name
    if missing and f"{module_name}.".startswith(f"{missing}."):
      raise ValueError(
        f"{where}, but there is no module {missing}: install it, or start the"
        " program in the folder that it is in, or add that folder to"
        " PYTHONPATH."
      ) from error
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{last.filename}:{last.lineno}"
    if isinstance(error, SyntaxError):
      place = f"{error.filename}:{error.lineno}"
    message = " ".join(str(error).split())
    raise ValueError(
      f"{where}; {place}: {type(error).__name__}: {message}"
    ) from error
  try:
    return getattr(module, name)
  except AttributeError as error:
    raise ValueError(
      f"{where}, but {getattr(module, '__file__', None) or module_name} defines"
      f" no {name}."
    ) from error


def named_by(config: Mapping[str, Any]) -> list[Any]:
  """Returns the parts of a config, a plain dict, that may hold targets."""
  return [
    config["loss"]["extra"],
    config["data"]["collection"],
    config["eval"]["extra"],
    config["eval"].get("protocols", {}),
    config["data"].get("formats", {}),  # Not in configs of earlier versions.
  ]


def fingerprints(*named: Any) -> dict[str, str]:
  """Hashes the files of the modules that targets name.

  Args:
    *named: Targets, and mappings that hold targets; other texts are ignored.

  Returns:
    Module to the SHA-256 of its file, "" if there is no file. Modules that
    this file imports are not part of it.
  """
  found = {}
  for target in filter(is_target, _texts(named)):
    module = target.partition(":")[0]
    spec = None
    # `load` reports a module that is missing.
    with contextlib.suppress(ImportError, ValueError):
      spec = importlib.util.find_spec(module)
    found[module] = ""
    if spec and spec.has_location and spec.origin:
      content = pathlib.Path(spec.origin).read_bytes()
      found[module] = hashlib.sha256(content).hexdigest()
  return found


def describe_changes(
  before: Mapping[str, str], now: Mapping[str, str]
) -> list[str]:
  """Returns a line for each module whose file differs.

  Args:
    before: From `fingerprints`, when a checkpoint was saved.
    now: From `fingerprints`, of this start of the run.
  """
  return [
    f"The file of {module} has changed since the checkpoint was saved. The run"
    " goes on with the new code, so it differs from a run without a stop."
    for module, digest in now.items()
    if before.get(module, digest) != digest
  ]


def _texts(value: Any) -> Iterator[str]:
  """Yields all texts in nested mappings and sequences."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, Mapping):
    yield from _texts(tuple(value.values()))
  elif isinstance(value, tuple | list):
    for inner in value:
      yield from _texts(inner)
