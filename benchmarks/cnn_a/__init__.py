"""Verified accuracy of the five CNN-A networks, beside published figures."""
