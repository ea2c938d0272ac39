"""Augmentations that work on the device, for any number of bands."""

from .frames import FramesAsChannels
from .spectral import (
    ClipNormalize,
    QuantileNormalize,
    SelectBands,
    SpectralJitter,
    dihedral_flips,
    on_batches,
    spectral_index,
)
from .views import normalisation, training_view

__all__ = [
    'ClipNormalize',
    'FramesAsChannels',
    'QuantileNormalize',
    'SelectBands',
    'SpectralJitter',
    'dihedral_flips',
    'normalisation',
    'on_batches',
    'spectral_index',
    'training_view',
]
