"""Tests of the views made on the device."""

import pytest
import torch

from explora_geo.transforms import normalization, training_view


def test_normalisation_changes_the_image_only() -> None:
    batch = {
        'image': torch.tensor([[[[10.0, 20.0]], [[3.0, 5.0]]]]),
        'label': torch.tensor([4]),
        'skipped': ['a: torn'],
    }
    out = normalization(torch.tensor([10.0, 4.0]), torch.tensor([10.0, 1.0]))(batch)
    assert torch.allclose(out['image'], torch.tensor([[[[0.0, 1.0]], [[-1.0, 1.0]]]]))
    assert out['label'].tolist() == [4]
    assert out['skipped'] == ['a: torn']


@pytest.mark.parametrize('channels', [1, 3, 13])
def test_a_training_view_takes_any_band_count(channels: int) -> None:
    view = training_view(torch.zeros(channels), torch.ones(channels), 32, quarter_turns=True)
    out = view({'image': torch.rand(5, channels, 48, 48), 'label': torch.arange(5)})
    assert out['image'].shape == (5, channels, 32, 32)
    assert out['label'].tolist() == [0, 1, 2, 3, 4]


def test_the_whole_image_at_its_own_size_is_only_normalized() -> None:
    image = torch.rand(4, 3, 32, 32) * 255
    mean, std = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0])
    view = training_view(mean, std, 32, crop_scale=(1.0, 1.0), horizontal_flip=False)
    # A crop of the full area and of another aspect ratio does not fit, or is the image itself.
    out = view({'image': image})['image']
    expected = (image - mean[:, None, None]) / std[:, None, None]
    assert torch.allclose(out, expected, atol=1e-3)


def test_quarter_turns_and_mirrors_only_move_pixels() -> None:
    torch.manual_seed(0)
    image = (torch.arange(16.0).reshape(1, 1, 4, 4)).expand(64, 1, 4, 4)
    view = training_view(torch.zeros(1), torch.ones(1), 4, (1.0, 1.0), vertical_flip=True, quarter_turns=True)
    out = view({'image': image})['image']
    seen = {tuple(o.round().int().flatten().tolist()) for o in out}
    assert len(seen) == 8
    assert all(sorted(pixels) == list(range(16)) for pixels in seen)


@pytest.mark.parametrize('scale', [(0.0, 1.0), (0.5, 0.2), (0.5, 1.5)])
def test_a_crop_scale_outside_its_range_is_refused(scale: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match='crop_scale must be'):
        training_view(torch.zeros(1), torch.ones(1), 32, scale)
