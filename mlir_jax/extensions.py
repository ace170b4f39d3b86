"""Code of a user's own, by its name in the config: "MODULE:NAME".

It is imported only where this command line names it: with the file that
--config names, or with a flag. What a folder of somebody else says (a run, a
checkpoint, an export) is never imported; it is refused, with the flag to give.
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
  """Whether it has the form of a target, "my_project.losses:Margin"."""
  return isinstance(value, str) and bool(re.fullmatch(_TARGET, value))


def load(target: str, field: str) -> Any:
  """Imports what a target names.

  Args:
    target: "MODULE:NAME".
    field: The field that has it, for messages.

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


def fingerprints(*named: Any) -> dict[str, str]:
  """The files of modules, which the processes of a run must have in common.

  Args:
    *named: Targets, and mappings that hold some; other texts are left out.

  Returns:
    "SHA-256 of MODULE" to the hash of its file, "" where there is none.
  """
  found = {}
  for target in filter(is_target, _texts(named)):
    module = target.partition(":")[0]
    spec = None
    # `load` says what is missing.
    with contextlib.suppress(ImportError, ValueError):
      spec = importlib.util.find_spec(module)
    digest = ""
    if spec and spec.has_location and spec.origin:
      content = pathlib.Path(spec.origin).read_bytes()
      digest = hashlib.sha256(content).hexdigest()
    found[f"SHA-256 of {module}"] = digest
  return found


def _texts(value: Any) -> Iterator[str]:
  """All texts in nested mappings and tuples."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, Mapping | tuple):
    for inner in value.values() if isinstance(value, Mapping) else value:
      yield from _texts(inner)
