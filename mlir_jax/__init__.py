"""Multilingual dense retrieval in JAX, from English pairs to any language."""

import importlib

__version__ = "0.1.0"

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
