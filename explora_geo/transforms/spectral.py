"""Spectral indices by the names of bands."""

from collections.abc import Sequence
from inspect import signature
from typing import Any

from torchgeo import transforms as tg

from ..bands import canonical

#: Names of the bands that each index of TorchGeo is made of: colors, and Sentinel-2's.
_ROLES = {
    'index_red': ('red', 'B04'),
    'index_green': ('green', 'B03'),
    'index_blue': ('blue', 'B02'),
    'index_nir': ('nir', 'B08', 'B8A'),
    'index_swir': ('swir1', 'B11'),
    'index_swir2': ('swir2', 'B12'),
    'index_vre1': ('rededge', 'B05'),
}
#: TorchGeo's indices by name. Its burn ratio takes the longer short-wave band.
INDICES: dict[str, Any] = {
    name: getattr(tg, f'Append{name}')
    for name in ('NDVI', 'NDWI', 'NDBI', 'NDSI', 'NBR', 'SWI', 'GNDVI', 'BNDVI', 'NDRE')
}


def spectral_index(name: str, bands: Sequence[str]) -> Any:
    """One of TorchGeo's index transforms, which append a band, by the names of the bands.

    Args:
        name: Index, such as `NDVI`.
        bands: Names of the bands in image order: colors, or Sentinel-2's.

    Raises:
        ValueError: If the index is unknown or a band it needs is missing.
    """
    if name not in INDICES:
        raise ValueError(f'index must be one of {", ".join(INDICES)}, got {name!r}.')
    cls = INDICES[name]
    known = [canonical(band) for band in bands]
    positions = {}
    for role in signature(cls).parameters:
        names = _ROLES['index_swir2' if (name, role) == ('NBR', 'index_swir') else role]
        found = [known.index(canonical(n)) for n in names if canonical(n) in known]
        if not found:
            raise ValueError(
                f'{name} needs one of the bands {", ".join(names)}, there are {", ".join(bands)}.'
            )
        positions[role] = found[0]
    return cls(**positions)
