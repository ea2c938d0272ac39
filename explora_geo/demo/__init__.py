"""What measurements share: a recipe, labeled tiles in memory, scores over draws of labels."""
