"""How good a model is: evaluations and their report."""
