"""What a model is worth: evaluators and their report."""
