"""Reward models: pointwise, pairwise, user signals."""
