"""How a model is trained: recipe, loop, objective, checkpoints. What happens to its layers is in methods."""
