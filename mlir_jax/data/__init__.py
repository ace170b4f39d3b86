"""From files to batches: sources, records, token store, sampling."""
