"""File formats, one module each, read into records."""
