"""Recipes: what a run does, as a short typed file."""
