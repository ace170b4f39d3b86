"""Embeddings of texts, exact search over them, and runs."""
