"""What several stages use: the model of a set, progress, processes, interrupts."""
