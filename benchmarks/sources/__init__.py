"""Scripts that made the shipped source weights."""
