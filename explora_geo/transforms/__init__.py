"""On-device augmentations for any number of bands."""

from explora_geo.transforms.multicrop import MultiCrop, ViewsConfig
from explora_geo.transforms.spectral import QuantileNormalize, SpectralJitter, spectral_index
from explora_geo.transforms.views import (
    FramesAsChannels,
    dihedral_flips,
    normalization,
    on_batches,
    training_view,
)

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
