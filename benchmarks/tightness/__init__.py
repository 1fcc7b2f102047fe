"""How tight every method is, beside another library."""
