"""The engine: bounds of a network over a region, by several methods."""
