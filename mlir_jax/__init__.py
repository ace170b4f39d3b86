"""Multilingual dense retrieval in JAX, from English pairs to any language."""

import importlib
import importlib.metadata
import os
import re
import sys

__version__ = "0.1.0"
_LOWEST_JAX = "0.10.2"  # setup.py reads it.

# Name to the module that has it.
_LAZY = {
  "load": "mlir_jax.retrieval.model",
  "Index": "mlir_jax.retrieval.index",
}


def __getattr__(name: str):
  """Imports on first use: `import mlir_jax` alone stays cheap, without JAX."""
  if name in _LAZY:
    return getattr(importlib.import_module(_LAZY[name]), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _check_jax() -> None:
  """Refuses a JAX that is too old, before a missing name in it does.

  pip does not check this: a lower bound in setup.py would make it replace the
  JAX of a Colab or TPU image, which fits the devices there.

  Raises:
    ImportError: in Python. A command prints the line and ends.
  """
  try:
    found = importlib.metadata.version("jax")
  except importlib.metadata.PackageNotFoundError:
    return  # Its import says so.
  if _numbers(found) >= _numbers(_LOWEST_JAX):
    return
  line = (
    f"mlir_jax needs jax {_LOWEST_JAX} or newer, but {found} is installed. Run"
    f" pip install 'jax>={_LOWEST_JAX}' (on a GPU jax[cuda13], on a TPU"
    " jax[tpu]), then restart Python."
  )
  if os.path.basename(sys.argv[0]) in ("-m", "mlir-jax"):
    sys.exit(line)
  raise ImportError(line)


def _numbers(version: str) -> list[int]:
  return [int(number) for number in re.findall(r"\d+", version)[:3]]


_check_jax()
