"""Training steps of this package and of what people would use instead, side by side."""
