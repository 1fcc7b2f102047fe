"""What rigorous rounding costs."""
