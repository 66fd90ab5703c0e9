"""Likelihoods of sequences under a model, its information curve, and the group sizes that are optimal for it."""
