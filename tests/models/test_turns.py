"""Features averaged over orientations turn with the tile."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from explora_geo.models import GroupChannelTokenizer, ViT
from explora_geo.models.turns import average_features, average_maps, turn, turn_back

Build = Callable[..., ViT]


@pytest.mark.parametrize('number', range(8))
def test_turning_back_undoes_a_turn(number: int) -> None:
    image = torch.randn(2, 3, 4, 6)
    assert torch.equal(turn_back(turn(image, number), number), image)


def test_the_eight_orientations_differ() -> None:
    image = torch.randn(4, 4)
    assert len({tuple(turn(image, n).flatten().tolist()) for n in range(8)}) == 8


def grid(patches: Tensor, side: int) -> Tensor:
    return patches.transpose(-2, -1).unflatten(-1, (side, side))


@pytest.mark.parametrize(('turns', 'numbers'), [(4, range(4)), (8, range(8))])
def test_features_of_a_turned_tile_are_the_turned_features(
    build_vit: Build, images: Tensor, turns: int, numbers: range
) -> None:
    vit = build_vit().eval()
    with torch.no_grad():
        expected = average_features(vit, images, [-2, -1], turns)
        for number in numbers:
            found = average_features(vit, turn(images, number), [-2, -1], turns)
            for a, b in zip(found, expected, strict=True):
                assert_close(a.cls, b.cls, atol=1e-4, rtol=1e-4)
                assert_close(grid(a.patches, 4), turn(grid(b.patches, 4), number), atol=1e-4, rtol=1e-4)
        once = average_features(vit, images, [-1])[0]
    assert torch.equal(once.cls, vit(images).cls) and not torch.allclose(once.cls, expected[1].cls, atol=1e-3)


def test_groups_of_bands_are_turned_as_well() -> None:
    tokenizer = GroupChannelTokenizer(
        32, img_size=16, patch_size=8, bands=('B02', 'B04', 'B05'), channel_groups=(('B04', 'B02'), ('B05',))
    )
    vit = ViT(tokenizer, 32, 2, 2).eval()
    image = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        (expected,) = average_features(vit, image, [-1], 8)
        (found,) = average_features(vit, turn(image, 5), [-1], 8)
    assert expected.patches.shape == (3, 2, 4, 32)
    assert_close(grid(found.patches, 2), turn(grid(expected.patches, 2), 5), atol=1e-4, rtol=1e-4)


def test_maps_that_need_not_be_square_come_back_upright(build_vit: Build) -> None:
    vit = build_vit(dynamic_img_size=True).eval()
    image = torch.randn(2, 3, 16, 32)
    with torch.no_grad():
        assert average_features(vit, image, [-1], 8)[0].patches.shape == (2, 1, 8, 32)
    assert_close(average_maps(lambda x: x.square(), image, 8), image.square())


@pytest.mark.parametrize('turns', [0, 2, 16])
def test_another_number_of_turns_is_refused(build_vit: Build, images: Tensor, turns: int) -> None:
    with pytest.raises(ValueError, match=f'turns must be 1, 4 .* got {turns}'):
        average_features(build_vit(), images, [-1], turns)
