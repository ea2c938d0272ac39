"""Transforms of bands are exact on pixels, and batched."""

from typing import Any

import kornia.augmentation as K
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from explora_geo.transforms import QuantileNormalize, SpectralJitter, spectral_index
from explora_geo.transforms.spectral import INDICES

BANDS = ('B02', 'B03', 'B04', 'B05', 'B08', 'B11', 'B12')


@pytest.fixture
def image() -> Tensor:
    return 3000 * torch.rand(6, 7, 16, 16)


def test_quantiles_are_each_images_and_bands_own(image: Tensor) -> None:
    scales = torch.rand(6, 7, 1, 1) + 0.5
    normalise = QuantileNormalize(0.1, 0.9)
    found = normalise(image * scales + 100)
    assert_close(found, normalise(image), atol=1e-4, rtol=0)  # whatever gain and offset they have
    for band in found.flatten(0, 1):
        assert 0.08 < (band == 0).float().mean() < 0.13 and 0.08 < (band == 1).float().mean() < 0.13
    assert torch.isfinite(normalise(torch.ones(1, 2, 4, 4))).all()


def test_jitter_changes_all_bands_alike_and_each_a_little(image: Tensor) -> None:
    jitter = SpectralJitter(brightness=0.5, contrast=0.3, per_band=0.01, p=1.0)
    std, mean = torch.std_mean(image, dim=(2, 3))
    new_std, new_mean = torch.std_mean(jitter(image), dim=(2, 3))
    gain, shift = new_std / std, (new_mean - mean) / std
    assert gain.std(dim=1).max() < 0.02 and shift.std(dim=1).max() < 0.02  # between bands
    assert gain.mean(dim=1).std() > 0.02 and shift.mean(dim=1).std() > 0.05  # between images
    assert gain.min() > 0.68 and gain.max() < 1.32 and shift.abs().max() < 0.52


def test_jitter_leaves_the_share_of_images_that_it_should(image: Tensor) -> None:
    found = SpectralJitter(p=0.5)(image.repeat(50, 1, 1, 1))
    same = (found == image.repeat(50, 1, 1, 1)).flatten(1).all(dim=1).float().mean()
    assert 0.4 < same < 0.6
    assert torch.equal(SpectralJitter(0, 0, 0, p=1.0)(torch.ones(2, 3, 4, 4)), torch.ones(2, 3, 4, 4))


def test_indices_take_the_bands_by_name(image: Tensor) -> None:
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
    with pytest.raises(ValueError, match='NDVI needs one of the bands nir, B08, B8A, got B04, B03'):
        spectral_index('NDVI', ('B04', 'B03'))
    with pytest.raises(ValueError, match=r"index must be one of NDVI, .* got 'EVI'"):
        spectral_index('EVI', BANDS)


@pytest.mark.parametrize(
    ('build', 'sentence'),
    [
        (lambda: QuantileNormalize(0.9, 0.1), 'quantiles with 0 <= low < high <= 1'),
        (lambda: SpectralJitter(brightness=-1), 'must not be negative'),
        (lambda: SpectralJitter(contrast=0.98, per_band=0.05), r'contrast \+ per_band must be below 1'),
    ],
)
def test_values_that_make_no_sense_are_refused(build: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build()


def test_they_are_kornia_augmentations() -> None:
    for step in (QuantileNormalize(), SpectralJitter()):
        assert isinstance(step, K.IntensityAugmentationBase2D)
