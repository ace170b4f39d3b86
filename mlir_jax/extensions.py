"""Code of a user's own, by its name in the config: "MODULE:NAME".

It is imported only where this command line names it: with the file that
--config names, or with a flag. What a folder of somebody else says (a run, a
checkpoint, an export) is never imported; it is refused, with the flag to give.
"""

import importlib
import re
import traceback
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
      f"{where}, but {module.__file__} defines no {name}."
    ) from error
