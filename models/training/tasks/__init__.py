"""Tasks: each one is a network with its loss and its actions between the steps."""
