"""Randomized smoothing: certificates from samples, each with its stated confidence."""
