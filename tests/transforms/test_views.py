"""Tests of the views made on the device."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close
from torchgeo.transforms import Rearrange

from explora_geo.datamodules.fmow import SENTINEL_MEAN, SENTINEL_STD
from explora_geo.transforms import (
    FramesAsChannels,
    QuantileNormalize,
    SpectralJitter,
    dihedral_flips,
    normalization,
    on_batches,
    spectral_index,
    training_view,
)


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


def test_satmaes_normalization_is_its_formula_in_8_bits_but_for_their_rounding() -> None:
    image = 3000 * torch.rand(6, 7, 16, 16)
    bands = list(SENTINEL_MEAN)[:7]
    mean, std = (torch.tensor([table[b] for b in bands]) for table in (SENTINEL_MEAN, SENTINEL_STD))
    low, high = (x.view(-1, 1, 1) for x in (mean - 2 * std, mean + 2 * std))
    expected = ((image - low) / (high - low) * 255).clamp(0, 255).to(torch.uint8) / 255
    found = normalization(mean - 2 * std, 4 * std, clip=True)({'image': image})['image']
    assert (found - expected).abs().max() <= 1 / 255 + 1e-5 and found.min() == 0 and found.max() <= 1


def test_values_are_clipped_before_the_crop_mixes_them() -> None:
    image = torch.zeros(1, 1, 32, 32)
    image[..., ::2] = 1000
    view = training_view(torch.zeros(1), torch.ones(1), 8, (1.0, 1.0), clip=True)({'image': image})['image']
    assert view.mean() == pytest.approx(0.5, abs=0.1)


def test_flips_give_all_eight_orientations_alike() -> None:
    image = torch.rand(1, 2, 5, 5)
    expected = [torch.rot90(x, k, (2, 3)) for x in (image, image.flip(3)) for k in range(4)]
    found = on_batches(*dihedral_flips())({'image': image.repeat(800, 1, 1, 1)})['image']
    errors = torch.stack([(found - e).abs().amax(dim=(1, 2, 3)) for e in expected])
    assert errors.amin(dim=0).max() < 1e-4
    counts = errors.argmin(dim=0).bincount(minlength=8)
    assert counts.min() > 60 and counts.max() < 140


def test_masks_and_boxes_move_with_the_image() -> None:
    steps = SpectralJitter(), spectral_index('NDVI', ('red', 'green', 'nir')), QuantileNormalize()
    sequence = on_batches(*steps, *dihedral_flips())
    image = 3000 * torch.rand(6, 3, 16, 16)
    # A mask that marks where the first band is brightest, and the box around that pixel.
    image[:, 0] = 0
    image[:, 0, 3, 5] = 5000
    mask = (image[:, :1] > 4000).float()
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


def test_all_frames_of_a_series_get_the_same_crop_and_flip() -> None:
    frame = torch.rand(16, 1, 2, 20, 20)
    series = frame + torch.tensor([0.0, 5.0, 10.0]).view(1, 3, 1, 1, 1)
    view = FramesAsChannels(training_view(torch.zeros(6), torch.ones(6), 12, quarter_turns=True))
    times = torch.randint(0, 9, (16, 3, 3))
    batch = view({'image': series, 'timestamps': times, 'label': torch.arange(16)})
    found = batch['image']
    assert found.shape == (16, 3, 2, 12, 12) and torch.equal(batch['timestamps'], times)
    for i, offset in enumerate((0.0, 5.0, 10.0)):
        assert_close(found[:, i] - offset, found[:, 0], atol=1e-4, rtol=0)
    assert not torch.allclose(found[0, 0], found[1, 0])


def test_each_band_of_each_frame_is_normalized() -> None:
    mean, std = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0])
    series = torch.randn(3, 4, 2, 5, 5)
    found = FramesAsChannels(normalization(mean.repeat(4), std.repeat(4)))({'image': series})['image']
    assert_close(found, (series - mean.view(2, 1, 1)) / std.view(2, 1, 1))


def test_the_stacking_is_torchgeos() -> None:
    series = torch.randn(3, 4, 2, 5, 5)
    stacked = []
    FramesAsChannels(lambda batch: stacked.append(batch['image']) or batch)({'image': series})
    assert torch.equal(stacked[0], Rearrange('b t c h w -> b (t c) h w')(series))


def test_single_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r'shape \(B, T, C, H, W\), got \(2, 3, 4, 4\)'):
        FramesAsChannels(lambda batch: batch)({'image': torch.ones(2, 3, 4, 4)})
