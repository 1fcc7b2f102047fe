"""Gaussian, dual and first-order smoothing of one small network on MNIST, side by side."""
