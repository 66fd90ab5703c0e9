"""Models: the networks of this package, checkpoints of other libraries, and the functions that load them."""
