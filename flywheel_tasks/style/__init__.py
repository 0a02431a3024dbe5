"""Style-artifact features."""
