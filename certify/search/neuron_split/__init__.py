"""Branch and bound over the pieces of nonlinearities, with the splits in the bound itself."""
