"""Multi-crop views: which pixels are seen, and which changes which bands bear."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from explora_geo.transforms import MultiCrop, ViewsConfig

RGB = ('red', 'green', 'blue')
S2 = tuple(f'B{i:02d}' for i in range(1, 14))
STILL: dict[str, Any] = {
    'global_size': 32,
    'local_size': 16,
    'num_local': 3,
    'jitter': 0,
    'grayscale': 0,
    'band_drop': 0,
    'blur': (0, 0, 0),
    'solarize': 0,
}
WHOLE: dict[str, Any] = {**STILL, 'global_scale': (1, 1), 'horizontal_flip': False}


def tiles(bands: int, count: int = 4, size: int = 32) -> Tensor:
    """Smooth positive images of different means."""
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing='ij')
    slopes = torch.rand(count, bands, 2, 1, 1)
    return 50 + 100 * (slopes[:, :, 0] * x + slopes[:, :, 1] * y) + 10 * torch.rand(count, 1, 1, 1)


@pytest.mark.parametrize('bands', [RGB, ('pan',), ('red', 'green', 'blue', 'nir'), S2], ids=len)
def test_views_are_global_crops_and_smaller_local_ones(bands: tuple[str, ...]) -> None:
    views = MultiCrop(ViewsConfig(global_size=32, local_size=16, num_local=3), bands)(tiles(len(bands)))
    assert [v.shape for v in views] == [(8, len(bands), 32, 32), (12, len(bands), 16, 16)]
    assert all(torch.isfinite(v).all() and v.dtype == torch.float32 for v in views)


def test_there_may_be_no_local_crops() -> None:
    views = MultiCrop(ViewsConfig(global_size=32, num_local=0), RGB)(tiles(3))
    assert [v.shape for v in views] == [(8, 3, 32, 32)]


def test_all_images_come_before_the_next_crop_of_the_first() -> None:
    image = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 32, 32)
    for view in MultiCrop(ViewsConfig(**STILL), RGB)(image):
        seen = view.mean((1, 2, 3))
        torch.testing.assert_close(seen, torch.arange(4.0).repeat(len(view) // 4), atol=1e-4, rtol=0)


@pytest.mark.parametrize('statistics', [(), (torch.tensor([90.0, 100, 110]), torch.tensor([20.0, 30, 40]))])
def test_whole_crops_are_the_images(statistics: tuple[Tensor, ...]) -> None:
    image = (tiles(3, 200) - 100) / 30
    for crop in MultiCrop(ViewsConfig(**WHOLE), RGB, *statistics)(image)[0].chunk(2):
        # Of the whole area, one side reaches over the image and is cut; the other is at least 0.87 of it.
        differences = (crop - image).abs()
        assert differences.mean() < 0.1 and differences.amax((1, 2, 3)).min() < 0.05


def test_nothing_but_the_image_is_seen_up_to_its_border() -> None:
    image = torch.full((50, 1, 32, 32), 3.0)
    for view in MultiCrop(ViewsConfig(**{**STILL, 'local_scale': (0.05, 1)}), ('pan',))(image):
        torch.testing.assert_close(view, torch.full_like(view, 3.0))


def test_local_crops_see_less_of_an_image() -> None:
    ramp = torch.linspace(0, 1, 64).expand(200, 3, 64, 64)
    config = ViewsConfig(**{**STILL, 'num_local': 1, 'local_scale': (0.05, 0.05), 'global_scale': (0.5, 0.5)})
    views = MultiCrop(config, RGB)(ramp)
    widths = [(v.amax((1, 2, 3)) - v.amin((1, 2, 3))).mean() for v in views]
    assert widths[0] == pytest.approx(0.5**0.5, abs=0.05) and widths[1] == pytest.approx(0.05**0.5, abs=0.05)


def test_flips_and_quarter_turns_are_the_eight_of_the_square() -> None:
    corners = torch.zeros(1, 1, 32, 32)
    corners[..., :16, :16], corners[..., :16, 16:], corners[..., 16:, :16] = 1, 2, 3
    seen = {}
    for flips, turns in ((False, False), (True, False), (False, True), (True, True)):
        flipped = {'horizontal_flip': flips, 'vertical_flip': flips}
        changes = {'num_local': 0, **flipped, 'quarter_turns': turns}
        config = ViewsConfig(**{**WHOLE, **changes})
        view = MultiCrop(config, ('pan',))(corners.expand(100, 1, 32, 32))[0]
        seen[flips, turns] = {tuple(v[0, ::28, ::28].flatten().round().int().tolist()) for v in view}
    assert seen[False, False] == {(1, 2, 3, 0)} and len(seen[True, True]) == 8
    assert len(seen[True, False]) == len(seen[False, True]) == 4
    assert seen[False, True] == {(1, 2, 3, 0), (3, 1, 0, 2), (0, 3, 2, 1), (2, 0, 1, 3)}


@pytest.mark.parametrize('size', [None, 32])
def test_dinov2s_horizontal_flip_is_the_only_symmetry_unless_asked_for(size: int | None) -> None:
    corners = torch.zeros(1, 1, 32, 32)
    corners[..., :16, :16], corners[..., :16, 16:], corners[..., 16:, :16] = 1, 2, 3
    config = ViewsConfig(**{**WHOLE, 'num_local': 0, 'horizontal_flip': True, 'global_size': size})
    view = MultiCrop(config, ('pan',))(corners.expand(100, 1, 32, 32))[0]
    step = view.shape[-1] - 4
    assert view.shape[-1] == (size or 224)
    seen = {tuple(v[0, ::step, ::step].flatten().round().int().tolist()) for v in view}
    assert seen == {(1, 2, 3, 0), (2, 1, 0, 3)}


def test_data_fill_in_symmetries_that_are_not_set() -> None:
    assert ViewsConfig().oriented(True, True) == ViewsConfig(vertical_flip=True, quarter_turns=True)
    still = ViewsConfig(vertical_flip=False, quarter_turns=False)
    assert still.oriented(True, True) == still and ViewsConfig().oriented(False, False) == still


def test_flips_is_an_old_name_for_two() -> None:
    with pytest.warns(FutureWarning, match='use horizontal_flip: False and vertical_flip: False'):
        assert ViewsConfig(flips=False) == ViewsConfig(horizontal_flip=False, vertical_flip=False)


@pytest.mark.parametrize(
    'bands', [S2, ('red', 'green', 'nir'), ('blue', 'green', 'red'), ('pan',)], ids=lambda b: b[0]
)
def test_no_rgb_operation_reaches_other_bands(bands: tuple[str, ...]) -> None:
    values = torch.linspace(10, 20, len(bands))
    image = values.view(-1, 1, 1).expand(4, len(bands), 32, 32)
    rgb_only = {'jitter': 1, 'brightness': 0, 'contrast': 0, 'saturation': 0.9, 'hue': 0.5}
    crop = MultiCrop(ViewsConfig(**{**STILL, **rgb_only, 'grayscale': 1, 'solarize': 1}), bands)
    for view in crop(image):
        torch.testing.assert_close(view, values.view(-1, 1, 1).expand_as(view))


def test_grey_crops_have_equal_bands_in_original_units() -> None:
    mean, std = torch.tensor([90.0, 100, 110]), torch.tensor([20.0, 30, 40])
    image = (tiles(3) - mean[:, None, None]) / std[:, None, None]
    view = MultiCrop(ViewsConfig(**{**STILL, 'grayscale': 1}), RGB, mean, std)(image)[0]
    view = view * std[:, None, None] + mean[:, None, None]
    torch.testing.assert_close(view[:, 0], view[:, 1])
    torch.testing.assert_close(view[:, 0], view[:, 2])


def test_only_the_second_global_crop_is_solarised() -> None:
    config = ViewsConfig(**{**WHOLE, 'solarize': 1})
    image = torch.linspace(0, 1, 32).expand(4, 3, 32, 32)
    first, second = MultiCrop(config, RGB)(image)[0].chunk(2)
    assert first.amax() > 0.95 and second.amax() < 0.55


def test_jitter_changes_rgb_and_keeps_its_range() -> None:
    image = tiles(3)
    config = ViewsConfig(**{**WHOLE, 'jitter': 1, 'num_local': 0})
    view = MultiCrop(config, RGB)(image)[0]
    assert view.min() >= image.min() - 1 and view.max() <= image.max() + 1
    assert (view - image.repeat(2, 1, 1, 1)).abs().amax((1, 2, 3)).min() > 0.5


def test_colors_are_those_of_the_image_and_not_of_the_crop() -> None:
    # Half of each image is dark: of a dark crop alone solarization would turn the brighter pixels around.
    image = torch.cat([torch.linspace(0, 0.4, 16), torch.linspace(0.6, 1, 16)]).expand(8, 3, 32, 32) * 255
    config = ViewsConfig(**{**STILL, 'solarize': 1, 'global_scale': (0.1, 0.1), 'num_local': 0})
    for color_range, highest in ((None, 127), ((0.0, 510.0), 255)):
        crop = MultiCrop(replace(config, color_range=color_range), RGB)
        plain = MultiCrop(replace(config, color_range=color_range, solarize=0), RGB)
        torch.manual_seed(0)
        solarized = crop(image)[0]
        torch.manual_seed(0)
        expected = plain(image)[0]
        expected = torch.where(expected >= highest, 2 * highest + 1 - expected, expected)
        torch.testing.assert_close(solarized[8:], expected[8:], atol=1.5, rtol=0)


def test_brightness_and_contrast_move_other_bands_about_their_mean() -> None:
    noise = torch.randn(300, 4, 16, 16)
    config = ViewsConfig(**{**WHOLE, 'global_size': 16, 'jitter': 1, 'num_local': 0})
    view = MultiCrop(config, ('a', 'b', 'c', 'd'))(noise)[0]
    shift, stretch = view.mean((2, 3)), view.std((2, 3))
    assert -0.75 < shift.min() < -0.3 and 0.3 < shift.max() < 0.75
    assert 0.45 < stretch.min() < 0.75 and 1.25 < stretch.max() < 1.6
    # One draw per crop, the same for all bands: a cloud's shadow, not a broken detector.
    assert (shift.amax(1) - shift.amin(1)).max() < 0.6


def test_one_band_is_dropped_to_its_mean_and_never_the_only_one() -> None:
    config = ViewsConfig(**{**STILL, 'band_drop': 1})
    for view in MultiCrop(config, S2)(torch.randn(4, 13, 32, 32)):
        assert ((view == 0).flatten(2).all(2).sum(1) == 1).all()
    for view in MultiCrop(config, ('pan',))(torch.randn(4, 1, 32, 32)):
        assert not (view == 0).flatten(1).all(1).any()


def test_blur_is_as_wide_as_the_crop_is_large() -> None:
    spike = torch.zeros(64, 1, 64, 64)
    spike[:, :, 32, 32] = 1
    peaks = []
    for size in (64, 224):
        crops = {'global_size': size, 'num_local': 0, 'blur': (1, 0, 0)}
        image = torch.nn.functional.pad(spike, [(size - 64) // 2] * 4)
        first, second = MultiCrop(ViewsConfig(**{**WHOLE, **crops}), ('pan',))(image)[0].chunk(2)
        assert second.amax() > 0.9
        peaks.append(first.amax((1, 2, 3)).mean())
    assert peaks[1] < 0.6 * peaks[0] < 1


def test_blur_of_a_stated_width_does_not_depend_on_the_crop() -> None:
    spike = torch.zeros(1, 1, 64, 64)
    spike[:, :, 32, 32] = 1
    crops = {'global_size': 64, 'num_local': 0, 'blur': (1, 0, 0), 'blur_sigma': (2.0, 2.001)}
    first = MultiCrop(ViewsConfig(**{**WHOLE, **crops}), ('pan',))(spike)[0][0]
    assert first.amax() == pytest.approx(1 / (2 * math.pi * 2**2), rel=0.2)


@pytest.mark.parametrize('bands', [RGB, S2], ids=len)
def test_all_frames_of_a_series_are_changed_alike(bands: tuple[str, ...]) -> None:
    image = tiles(len(bands))[:, None].repeat(1, 3, 1, 1, 1)
    config = ViewsConfig(global_size=32, local_size=16, num_local=3, blur=(0, 0, 0))
    views = MultiCrop(config, bands)(image)
    assert [v.shape for v in views] == [(8, 3, len(bands), 32, 32), (12, 3, len(bands), 16, 16)]
    for view in views:
        torch.testing.assert_close(view[:, 0], view[:, 2])


def test_views_do_not_depend_on_autocast() -> None:
    crop, image = MultiCrop(ViewsConfig(**STILL), RGB), tiles(3)
    torch.manual_seed(3)
    expected = crop(image)
    torch.manual_seed(3)
    with torch.autocast('cpu', torch.bfloat16):
        found = crop(image)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ('fields', 'sentence'),
    [
        ({'global_size': 0}, 'global_size must be at least 2'),
        ({'num_local': -1}, 'num_local must be at least 0'),
        ({'color_range': (1, 1)}, 'color_range must be .low, high. with low < high'),
        ({'blur_sigma': (0, 2)}, 'blur_sigma must be .low, high. with 0 < low < high'),
        ({'local_scale': (0.4, 0.3)}, 'local_scale must be'),
        ({'global_scale': (0, 1)}, 'global_scale must be'),
        ({'jitter': 1.2}, 'jitter must be probabilities'),
        ({'blur': (1, 0.5)}, 'values of blur must be probabilities'),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ViewsConfig(**fields)
