"""The package's own networks, and their checkpoints."""
