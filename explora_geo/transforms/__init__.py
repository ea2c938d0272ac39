"""Augmentations that work on the device, for any number of bands."""

from .multicrop import MultiCrop, ViewsConfig
from .views import normalisation, training_view, training_views

__all__ = ['MultiCrop', 'ViewsConfig', 'normalisation', 'training_view', 'training_views']
