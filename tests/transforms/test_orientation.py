"""The eight orientations of an image."""

import pytest
import torch

from explora_geo.transforms.orientation import orientations, turn, turn_back


@pytest.mark.parametrize('k', range(8))
def test_turning_back_undoes_a_turn(k: int) -> None:
    image = torch.randn(2, 3, 5, 7)
    turned = turn(image, k)
    assert turned.shape[-2:] == ((5, 7) if k % 2 == 0 else (7, 5))
    assert torch.equal(turn_back(turned, k), image)


def test_the_eight_orientations_differ() -> None:
    image = torch.arange(9.0).view(1, 3, 3)
    assert len({tuple(turn(image, k).flatten().tolist()) for k in range(8)}) == 8


def test_images_that_are_not_square_take_half_turns_alone() -> None:
    assert orientations(4, 8, 8) == [0, 1, 2, 3] and orientations(8, 8, 4) == [0, 2, 4, 6]
    with pytest.raises(ValueError, match='turns must be 1, 4 or 8, got 3'):
        orientations(3, 8, 8)
