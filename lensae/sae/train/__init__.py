"""Training: the loop, one SAE on its way through it, its checkpoint, its schedule and its measurements."""
