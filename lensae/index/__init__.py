"""The feature index: an inverted file over an activation set, one segment per shard."""
