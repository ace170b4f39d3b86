"""Finds hard negatives: passages that look right for a question and are not."""
