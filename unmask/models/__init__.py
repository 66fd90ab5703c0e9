"""Models: the embedded ones, checkpoints of this package and of other libraries, and what loads them."""
