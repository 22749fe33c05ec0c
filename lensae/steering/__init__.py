"""Changing the residual stream along a feature while the model runs."""
