"""Shipped recipes: experiments with the scores to expect; docs/recipes.md."""
