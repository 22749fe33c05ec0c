"""steer: a feature changed while the model writes, and measured against controls."""
