"""Text in: corpora by name or path, prompts, and packing for plain reading."""
