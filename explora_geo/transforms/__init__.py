"""Augmentations that work on the device, for any number of bands."""

from .multicrop import MultiCrop, ViewsConfig
from .spectral import QuantileNormalize, SpectralJitter, spectral_index
from .views import FramesAsChannels, dihedral_flips, normalization, on_batches, training_view

__all__ = [
    'FramesAsChannels',
    'MultiCrop',
    'QuantileNormalize',
    'SpectralJitter',
    'ViewsConfig',
    'dihedral_flips',
    'normalization',
    'on_batches',
    'spectral_index',
    'training_view',
]
