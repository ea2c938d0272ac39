"""How the shipped source weights were made."""
