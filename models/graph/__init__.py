"""Moves on a torch.fx graph, the algebra of kernels, and activations that stay one node of a graph."""
