"""Files of models, runs and stores, on a disk or on object storage."""
