"""Crops of any images and settings: of the size asked for, of the image's own pixels only."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from explora_geo.transforms import ViewsConfig
from explora_geo.transforms.multicrop import MultiCrop, _random_affine
from explora_geo.transforms.views import training_view

SCALE = st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(lambda pair: (min(pair), max(pair)))
PLAIN = {'jitter': 0, 'grayscale': 0, 'band_drop': 0, 'blur': (0, 0, 0), 'solarize': 0}


@given(SCALE, st.tuples(st.booleans(), st.booleans()), st.booleans(), st.integers(0, 10**6))
def test_every_crop_lies_inside_its_image(
    scale: tuple[float, float], flips: tuple[bool, bool], turns: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    where = _random_affine(32, scale, flips, turns)
    corners = torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]])
    placed = corners @ where[:, :, :2].transpose(1, 2) + where[:, None, :, 2]
    assert placed.abs().max() <= 1 + 1e-5
    area = where[:, :, :2].det().abs()
    # A side cut to the image makes a crop smaller than asked for, never larger.
    assert (area <= scale[1] + 1e-5).all() and (area > 0.5 * scale[0]).all()


@settings(max_examples=8)
@given(
    st.integers(1, 3), st.integers(1, 5), st.integers(3, 40), st.integers(3, 40),
    st.integers(2, 24), st.integers(2, 16), st.integers(0, 3), SCALE,
)  # fmt: skip
def test_views_have_their_sizes_and_the_images_values(
    batch: int,
    bands: int,
    height: int,
    width: int,
    large: int,
    small: int,
    count: int,
    scale: tuple[float, float],
) -> None:
    config = ViewsConfig(
        global_size=large, local_size=small, num_local=count, global_scale=scale, local_scale=scale,
        **PLAIN,  # type: ignore[arg-type]
    )  # fmt: skip
    image = torch.rand(batch, bands, 1, 1).expand(-1, -1, height, width)
    views = MultiCrop(config, [f'band {i}' for i in range(bands)])(image)
    assert len(views) == 1 + bool(count)
    for view, number, size in zip(views, (2, count), (large, small), strict=False):
        assert view.shape == (number * batch, bands, size, size)
        # All of an image's pixels are equal, so nothing but the image is seen where its crops are, too.
        expected = image[..., :1, :1].repeat(number, 1, 1, 1).expand_as(view)
        torch.testing.assert_close(view, expected, atol=1e-4, rtol=1e-4)


@settings(max_examples=15)
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(4, 40), st.integers(4, 40), st.integers(1, 24), SCALE,
    st.booleans(),
)  # fmt: skip
def test_a_training_view_keeps_values_and_labels(
    batch: int, bands: int, height: int, width: int, size: int, scale: tuple[float, float], turns: bool
) -> None:
    mean, std = torch.arange(bands).float(), torch.arange(1, bands + 1).float()
    level = torch.rand(batch, bands, 1, 1) * 255
    view = training_view(mean, std, size, scale, True, True, turns)
    image = level.expand(-1, -1, height, width).clone()
    out = view({'image': image, 'label': torch.arange(batch)})
    assert out['image'].shape == (batch, bands, size, size) and out['label'].tolist() == list(range(batch))
    expected = ((level - mean[:, None, None]) / std[:, None, None]).expand_as(out['image'])
    torch.testing.assert_close(out['image'], expected, atol=1e-2, rtol=1e-3)
