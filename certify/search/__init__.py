"""The search for counterexamples, and their confirmation on the model itself."""
