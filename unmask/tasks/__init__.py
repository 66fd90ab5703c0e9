"""Tasks: training examples, prompts with masks, and scores of completions."""
