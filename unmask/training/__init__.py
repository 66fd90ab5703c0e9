"""Training of the package's own networks."""
