"""Arms: adaptations of one source that learn for the same number of steps."""
