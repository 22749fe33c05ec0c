"""What a feature means: which labels and tokens it follows."""
