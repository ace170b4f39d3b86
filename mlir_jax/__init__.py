"""Multilingual dense retrieval in JAX, from English pairs to any language."""

__version__ = "0.1.0"


def __getattr__(name: str):
  """`load` on first use: `import mlir_jax` alone stays cheap, without JAX."""
  if name == "load":
    from mlir_jax.retrieval import model

    return model.load
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
