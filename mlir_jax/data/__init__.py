"""Turns files into records, and records into the token store."""
