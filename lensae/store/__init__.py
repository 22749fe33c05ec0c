"""Activation sets on disk: chunked HDF5 shards with the map from every row back to its token and text."""
