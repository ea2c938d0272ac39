"""Spectral indices find their bands by name."""

import pytest
import torch
from torch.testing import assert_close

from explora_geo.transforms import spectral_index
from explora_geo.transforms.spectral import INDICES

BANDS = ('B02', 'B03', 'B04', 'B05', 'B08', 'B11', 'B12')


def test_indices_take_the_bands_by_name() -> None:
    image = 3000 * torch.rand(6, 7, 16, 16)
    ndvi = spectral_index('NDVI', BANDS)(image)
    red, nir = image[:, 2], image[:, 4]
    assert ndvi.shape[1] == 8
    assert_close(ndvi[:, 7], (nir - red) / (nir + red))
    colours = ('nir', 'red', 'green')
    assert_close(spectral_index('NDVI', colours)(image[:, [4, 2, 1]])[:, 3], ndvi[:, 7])
    burn = spectral_index('NBR', BANDS)(image)[:, 7]
    assert_close(burn, (nir - image[:, 6]) / (nir + image[:, 6]))  # the longer short-wave band
    for name in INDICES:
        assert torch.isfinite(spectral_index(name, BANDS)(image)).all()
    with pytest.raises(ValueError, match='NDVI needs one of the bands nir, B08, B8A, there are B04, B03'):
        spectral_index('NDVI', ('B04', 'B03'))
    with pytest.raises(ValueError, match=r"index must be one of NDVI, .* got 'EVI'"):
        spectral_index('EVI', BANDS)
