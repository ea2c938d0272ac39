"""Series are transformed like images, all frames alike."""

import pytest
import torch
from torch.testing import assert_close
from torchgeo.transforms import Rearrange

from explora_geo.transforms import FramesAsChannels, normalization, training_view


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
