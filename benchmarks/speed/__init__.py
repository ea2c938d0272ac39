"""Training steps of this package and of its alternatives, side by side."""
