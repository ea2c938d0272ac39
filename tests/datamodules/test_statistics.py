"""Tests of band statistics."""

import pytest
import torch

from explora_geo.datamodules.statistics import estimate, resolve


def test_values_are_matched_by_band_name() -> None:
    values = {'red': 1.0, 'B8A': 2.0, 'green': 3.0}
    assert resolve(values, ['b8a', 'R'], 'mean').tolist() == [2.0, 1.0]
    assert resolve([4, 5], ['b8a', 'R'], 'std').tolist() == [4.0, 5.0]


def test_imagenet_values_are_scaled_to_8_bits_and_follow_the_bands() -> None:
    mean = resolve('imagenet', ['blue', 'red'], 'mean')
    assert torch.allclose(mean, torch.tensor([0.406 * 255, 0.485 * 255]))


@pytest.mark.parametrize(
    ('value', 'message'),
    [
        ({'red': 1.0}, r"\['nir'\] are missing"),
        ([1.0], 'one value per band, got 1 values'),
        ('imagenet', 'only available for the bands'),
        ('other', "must be 'auto', 'imagenet' or numbers"),
        ([1.0, 0.0], 'positive'),
        ([1.0, float('nan')], 'positive'),
    ],
)
def test_values_that_do_not_fit_are_refused(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(value, ['red', 'nir'], 'std')  # type: ignore[arg-type]


def test_estimates_agree_with_all_pixels_at_once() -> None:
    images = [torch.rand(2, 5, 7) * 1000 + 5000, torch.rand(2, 3, 3) * 1000]
    mean, std = estimate(images)
    pixels = torch.cat([image.flatten(1) for image in images], dim=1).double()
    assert torch.allclose(mean, pixels.mean(1).float())
    assert torch.allclose(std, pixels.std(1, unbiased=False).float())


def test_a_constant_band_is_not_divided_by_zero() -> None:
    assert estimate([torch.full((1, 4, 4), 7.0)])[1].tolist() == [1.0]
    assert estimate([torch.zeros(1, 4, 4)])[1].tolist() == [1.0]


def test_no_image_means_no_estimate() -> None:
    with pytest.raises(ValueError, match='at least one readable tile'):
        estimate([])
