"""Multilingual dense retrieval in JAX, from English pairs to any language."""

__version__ = "0.1.0"


def __getattr__(name: str):
  """Loads on first use: `import mlir_jax` alone stays cheap, without JAX."""
  if name == "load":
    from mlir_jax.retrieval import model

    return model.load
  if name == "Index":
    from mlir_jax.retrieval import index

    return index.Index
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
