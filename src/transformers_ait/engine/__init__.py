"""Training: recipes, the Accelerate loop, resumable checkpoints, and what is special to each kind of model."""
