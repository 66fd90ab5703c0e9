"""Likelihoods of a masked model, its information curve, and the schedules that follow from it."""
