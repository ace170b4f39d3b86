"""Reads data sets that a library finds by name: a module for each library."""
