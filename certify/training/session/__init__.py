"""A training run from a recipe: resumable to the bit, chosen on validation images, exported."""
