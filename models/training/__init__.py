"""Training: what is learnt (recipes), from which losses, on which images, in a loop that can be resumed."""
