"""How a program refuses: one line that says what to do, and exit status 2."""

import os
import re
import sys
import traceback
from typing import NoReturn

from mlir_jax.data import records

# Errors whose message says what to do, if this package raised them.
_USER_ERRORS = (ValueError, OSError, ImportError, ArithmeticError, MemoryError)


def program() -> str:
  """Returns the program's name, which starts each error: "mlir-jax train"."""
  spec = sys.modules["__main__"].__spec__
  if spec and spec.parent == "mlir_jax":
    return f"mlir-jax {spec.name.rpartition('.')[2]}"
  return os.path.basename(sys.argv[0])


def refuse(message: str) -> NoReturn:
  """Prints why the program cannot go on, and ends it with status 2."""
  # The name of a file may hold control characters, which a terminal would obey.
  lines = [records.printable(line) for line in message.split("\n")]
  print(f"{program()}: " + "\n".join(lines), file=sys.stderr)
  sys.exit(2)


def is_for_user(error: BaseException) -> bool:
  """Whether the message of an error says what the user can do."""
  if not isinstance(error, _USER_ERRORS):
    return False
  if isinstance(error, OSError) and error.filename is not None:
    return True
  # XLA raises ValueError, too, in the frame that called the compiled function:
  # "UNKNOWN: Gloo ...", "RESOURCE_EXHAUSTED: ...".
  if re.match("[A-Z_]+: ", str(error)):
    return False
  *_, (frame, _) = traceback.walk_tb(error.__traceback__)
  # Not __name__, which is "__main__" in a program.
  package = frame.f_globals.get("__package__") or ""
  return package.split(".")[0] == "mlir_jax"
