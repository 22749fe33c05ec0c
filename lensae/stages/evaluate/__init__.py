"""evaluate: an SAE or a transcoder on held-out documents."""
