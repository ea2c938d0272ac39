"""Augmentations that work on the device, for any number of bands."""

from .frames import FramesAsChannels
from .multicrop import MultiCrop, ViewsConfig
from .spectral import (
    ClipNormalize,
    QuantileNormalize,
    SelectBands,
    SpectralJitter,
    dihedral_flips,
    on_batches,
    spectral_index,
)
from .views import normalization, training_view, training_views

__all__ = [
    'ClipNormalize',
    'FramesAsChannels',
    'MultiCrop',
    'QuantileNormalize',
    'SelectBands',
    'SpectralJitter',
    'ViewsConfig',
    'dihedral_flips',
    'normalization',
    'on_batches',
    'spectral_index',
    'training_view',
    'training_views',
]
