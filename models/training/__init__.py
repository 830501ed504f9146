"""Training: recipes, losses, images, and a loop that can be resumed."""
