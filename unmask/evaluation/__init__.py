"""Runs samplers over many prompts, and measures the quality of the results."""
