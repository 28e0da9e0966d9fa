"""Recipes: typed settings of a training run, and what they take over from the models they name."""
