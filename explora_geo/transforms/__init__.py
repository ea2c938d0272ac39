"""Augmentations that work on the device, for any number of bands."""

from .views import normalisation, training_view

__all__ = ['normalisation', 'training_view']
