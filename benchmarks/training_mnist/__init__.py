"""Certified training on MNIST: four methods, two radii, one small network."""
