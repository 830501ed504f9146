"""Networks, their reductions and their static cost, in plain PyTorch."""
