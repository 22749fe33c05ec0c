"""Sparse autoencoders: what one is, how each family is trained, how good it is, and its files."""
