"""Batches: the data of each step, a function of the seed and the step."""
