"""Running samplers over many prompts, and judging the result."""
