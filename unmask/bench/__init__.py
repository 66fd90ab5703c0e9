"""Benchmarks that compare in one run, on the user's machine."""
