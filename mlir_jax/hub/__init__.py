"""Trained retrievers for other libraries: folders, model cards, the check."""
