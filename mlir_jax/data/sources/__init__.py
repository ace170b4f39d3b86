"""Reads files into records: one module for each format.

A new format is a module that calls `text_lines.read_records` or
`json_stream.read_records` with a function that makes a record.
"""
