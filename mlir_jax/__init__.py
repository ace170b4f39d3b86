"""Multilingual dense retrieval in JAX, from English pairs to any language."""

__version__ = "0.1.0"
