"""Tasks: examples, prompts with masks, scores."""
