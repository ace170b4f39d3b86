"""Reads files into records: one module for each format.

A new format is a module that calls `text_lines.read_records` or
`containers.read_records` with a function that makes a record.
"""
