"""Transforms of bands: exact on pixels, batched, and harmless to masks and boxes."""

from typing import Any

import kornia.augmentation as K
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from explora_geo.datamodules.fmow import SENTINEL_MEAN, SENTINEL_STD
from explora_geo.transforms import (
    ClipNormalize,
    QuantileNormalize,
    SelectBands,
    SpectralJitter,
    dihedral_flips,
    on_batches,
    spectral_index,
)
from explora_geo.transforms.spectral import INDICES

BANDS = ('B02', 'B03', 'B04', 'B05', 'B08', 'B11', 'B12')


@pytest.fixture
def image() -> Tensor:
    return 3000 * torch.rand(6, 7, 16, 16)


def test_bands_are_selected_by_name_in_the_order_asked_for(image: Tensor) -> None:
    select = SelectBands(['B12', 'B2'], BANDS)
    assert torch.equal(select(image), image[:, [6, 0]])
    with pytest.raises(ValueError, match=r"Bands \['B01'\] are missing"):
        SelectBands(['B01'], BANDS)


def test_satmaes_normalisation_is_its_formula_in_8_bits(image: Tensor) -> None:
    bands = list(SENTINEL_MEAN)[:7]
    mean, std = (torch.tensor([table[b] for b in bands]) for table in (SENTINEL_MEAN, SENTINEL_STD))
    low, high = (x.view(-1, 1, 1) for x in (mean - 2 * std, mean + 2 * std))
    expected = ((image - low) / (high - low) * 255).clamp(0, 255).to(torch.uint8) / 255
    assert_close(ClipNormalize(mean - 2 * std, mean + 2 * std, 255)(image), expected, atol=1e-5, rtol=0)
    smooth = ClipNormalize(mean - 2 * std, mean + 2 * std)(image)
    assert (smooth - expected).abs().max() <= 1 / 255 + 1e-5
    assert smooth.min() >= 0 and smooth.max() <= 1


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
    with pytest.raises(ValueError, match='NDVI needs one of the bands nir, B08, B8A, there are B04, B03'):
        spectral_index('NDVI', ('B04', 'B03'))
    with pytest.raises(ValueError, match=r"index must be one of NDVI, .* got 'EVI'"):
        spectral_index('EVI', BANDS)


def test_flips_give_all_eight_orientations_alike() -> None:
    image = torch.rand(1, 2, 5, 5)
    expected = [torch.rot90(x, k, (2, 3)) for x in (image, image.flip(3)) for k in range(4)]
    found = on_batches(*dihedral_flips())({'image': image.repeat(800, 1, 1, 1)})['image']
    errors = torch.stack([(found - e).abs().amax(dim=(1, 2, 3)) for e in expected])
    assert errors.amin(dim=0).max() < 1e-4
    counts = errors.argmin(dim=0).bincount(minlength=8)
    assert counts.min() > 60 and counts.max() < 140


def test_all_work_in_one_sequence_with_masks_and_boxes(image: Tensor) -> None:
    sequence = on_batches(
        SpectralJitter(),
        spectral_index('NDVI', BANDS),
        SelectBands(['B04', 'B03', 'B02', 'B08'], BANDS),
        QuantileNormalize(),
        ClipNormalize(torch.zeros(4), torch.ones(4)),
        *dihedral_flips(),
    )
    # A mask that marks where the first band is brightest, and the box around that pixel.
    image[:, 2] = 0
    image[:, 2, 3, 5] = 5000
    mask = (image[:, 2:3] > 4000).float()
    batch: dict[str, Any] = {
        'image': image,
        'mask': mask,
        'bbox_xyxy': torch.tensor([[[5.0, 3.0, 5.0, 3.0]]]).repeat(6, 1, 1),
        'label': torch.arange(6),
    }
    found = sequence(batch)
    assert found['image'].shape == (6, 4, 16, 16) and torch.equal(found['label'], torch.arange(6))
    places = {tuple(x) for x in found['mask'][:, 0].nonzero()[:, 1:].tolist()}
    assert len(places) > 1 and found['mask'].sum() == 6
    for i in range(6):
        row, column = found['mask'][i, 0].nonzero()[0].tolist()
        assert found['image'][i, 0].argmax() == row * 16 + column
        box = found['bbox_xyxy'][i, 0].round().tolist()
        assert box[0] == column and box[1] == row


@pytest.mark.parametrize(
    ('build', 'sentence'),
    [
        (lambda: ClipNormalize([0.0, 1.0], [1.0, 1.0]), 'low must be below high in every band'),
        (lambda: ClipNormalize([0.0], [1.0, 2.0]), 'low must be below high'),
        (lambda: QuantileNormalize(0.9, 0.1), 'quantiles with 0 <= low < high <= 1'),
        (lambda: SpectralJitter(brightness=-1), 'must not be negative'),
        (lambda: SpectralJitter(contrast=0.98, per_band=0.05), r'contrast \+ per_band must be below 1'),
    ],
)
def test_values_that_make_no_sense_are_refused(build: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build()


def test_they_are_kornia_augmentations() -> None:
    for step in (SelectBands(['B02'], BANDS), QuantileNormalize(), SpectralJitter()):
        assert isinstance(step, K.IntensityAugmentationBase2D)
