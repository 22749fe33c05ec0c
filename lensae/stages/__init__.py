"""Where domains meet: each stage takes plain options, wires the domains, and returns records for the views."""
