"""Batched band transforms for use inside `K.AugmentationSequential`; masks and boxes stay unchanged."""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import kornia.augmentation as K
import torch
from kornia.augmentation import random_generator as rg
from torch import Tensor
from torchgeo import transforms as tg

from explora_geo.bands import canonical

#: Band names for each index argument of TorchGeo: colors, and Sentinel-2's.
_ROLES = {
    'index_red': ('red', 'B04'),
    'index_green': ('green', 'B03'),
    'index_blue': ('blue', 'B02'),
    'index_nir': ('nir', 'B08', 'B8A'),
    'index_swir': ('swir1', 'B11'),
    'index_swir2': ('swir2', 'B12'),
    'index_vre1': ('rededge', 'B05'),
}
#: TorchGeo's indices by name. Its burn ratio uses the longer short-wave band.
INDICES: dict[str, Any] = {
    name: getattr(tg, f'Append{name}')
    for name in ('NDVI', 'NDWI', 'NDBI', 'NDSI', 'NBR', 'SWI', 'GNDVI', 'BNDVI', 'NDRE')
}


class QuantileNormalize(K.IntensityAugmentationBase2D):
    """Normalization of each band of each image from two of its own quantiles to [0, 1], with clipping."""

    def __init__(self, low: float = 0.02, high: float = 0.98) -> None:
        """Initialize a QuantileNormalize.

        Args:
            low: Quantile that becomes 0.
            high: Quantile that becomes 1.

        Raises:
            ValueError: If they do not form a range within [0, 1].
        """
        super().__init__(p=1)
        if not 0 <= low < high <= 1:
            raise ValueError(f'low and high must be quantiles with 0 <= low < high <= 1, got {low, high}')
        self.flags = {'quantiles': (low, high)}

    def apply_transform(
        self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        """Normalize images, shape (B, C, H, W)."""
        # Sort, as torch.quantile is limited to 2^24 values.
        ordered = input.flatten(2).sort(dim=-1).values
        last = ordered.shape[-1] - 1
        low, high = (ordered[..., round(q * last)][..., None, None] for q in flags['quantiles'])
        return ((input - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)


class SpectralJitter(K.IntensityAugmentationBase2D):
    """Brightness and contrast jitter for any bands: shared, like a change of light, plus a little per band.

    Values change about each band's own mean, so that every band keeps its place in the spectrum, and
    nothing is clipped. For red, green and blue only, kornia's `K.ColorJitter` also changes colors.
    """

    def __init__(
        self, brightness: float = 0.2, contrast: float = 0.2, per_band: float = 0.05, p: float = 0.8
    ) -> None:
        """Initialize a SpectralJitter.

        Args:
            brightness: Largest shift of all bands, in standard deviations of the image's band.
            contrast: Largest relative change of contrast of all bands, below 1.
            per_band: Largest additional shift and contrast change of each band alone, in the same units.
            p: Probability of changing an image.

        Raises:
            ValueError: If a strength is negative or contrast can vanish.
        """
        super().__init__(p=p)
        if brightness < 0 or per_band < 0 or not 0 <= contrast + per_band < 1:
            raise ValueError(
                'brightness and per_band must not be negative, and contrast + per_band must be below 1, got '
                f'{brightness=}, {contrast=}, {per_band=}'
            )
        self._param_generator = rg.PlainUniformGenerator(
            (torch.tensor([-brightness, brightness]), 'shift', None, None),
            (torch.tensor([1 - contrast, 1 + contrast]), 'gain', None, None),
        )
        self.flags = {'per_band': per_band}

    def apply_transform(
        self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        """Jitter images, shape (B, C, H, W)."""
        std, mean = torch.std_mean(input, dim=(-2, -1), keepdim=True)
        shape = (*input.shape[:2], 1, 1)
        own = flags['per_band']
        noise = [torch.empty(shape, device=input.device).uniform_(-own, own).to(input) for _ in range(2)]
        shift, gain = (params[name].to(input).view(-1, 1, 1, 1) for name in ('shift', 'gain'))
        return mean + (gain + noise[0]) * (input - mean) + (shift + noise[1]) * std


def spectral_index(name: str, bands: Sequence[str]) -> Any:
    """Make one of TorchGeo's index transforms, which append a band, from the names of the bands.

    Args:
        name: Index, such as `NDVI`.
        bands: Names of the bands in image order: colors, or Sentinel-2's.

    Raises:
        ValueError: If the index is unknown or a band it needs is missing.
    """
    if name not in INDICES:
        raise ValueError(f'index must be one of {", ".join(INDICES)}, got {name!r}')
    cls = INDICES[name]
    known = [canonical(band) for band in bands]
    positions = {}
    for role in signature(cls).parameters:
        names = _ROLES['index_swir2' if (name, role) == ('NBR', 'index_swir') else role]
        found = [known.index(canonical(n)) for n in names if canonical(n) in known]
        if not found:
            raise ValueError(f'{name} needs one of the bands {", ".join(names)}, got {", ".join(bands)}')
        positions[role] = found[0]
    return cls(**positions)
