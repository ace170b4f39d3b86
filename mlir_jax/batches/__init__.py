"""Batches: what a step reads, a function of the seed and the step."""
