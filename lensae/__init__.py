"""Open a language model up: collect activations, train sparse autoencoders, read and steer their features."""

__version__ = "0.1.0"
