"""collect: a corpus through a model into activation sets."""
