"""Used by several stages: the model of a set, progress, processes, interrupts."""
