"""Attacks on many images at once. What they find is a suggestion: the model itself decides."""
