"""Builds a token store in shards, each alone, by many processes."""
