"""Recipes: experiments with the scores to expect, and how they are judged."""
