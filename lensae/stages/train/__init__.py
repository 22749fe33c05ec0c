"""train: sparse autoencoders on an activation set, one or several on one pass."""
