"""Recipes: configs that also bring their data and measure the result."""
