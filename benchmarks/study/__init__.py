"""Short adaptations of strong sources on several domains: what helps, what harms, and what predicts it."""
