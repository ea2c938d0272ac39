"""Measurements behind the numbers of explora_geo."""
