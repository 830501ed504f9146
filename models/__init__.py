"""What is run: networks, their reductions and their static cost, in plain PyTorch."""
