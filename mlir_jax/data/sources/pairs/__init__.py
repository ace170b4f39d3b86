"""Reads question-passage pairs: a module for each format.

A format says what the fields of a record mean. A container (JSON, CSV, Parquet)
says how records are in a file; see `containers`. `registry` lists the formats,
and `reading` chooses the format of a file.
"""
