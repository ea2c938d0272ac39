"""The feature pyramid."""

import pytest
import torch

from explora_geo.models.dense import FeaturePyramid


@pytest.mark.parametrize(
    ('patch', 'size'), [(8, (64, 96)), (16, (224, 224)), (14, (224, 224)), (4, (64, 64))]
)
def test_levels_are_a_quarter_to_a_thirty_second_of_the_image(patch: int, size: tuple[int, int]) -> None:
    maps = [torch.randn(2, 6, size[0] // patch, size[1] // patch) for _ in range(4)]
    levels = FeaturePyramid(6, 10, patch)(maps, size)
    assert [tuple(x.shape) for x in levels] == [(2, 10, size[0] // s, size[1] // s) for s in (4, 8, 16, 32)]


def test_each_level_comes_from_its_own_block() -> None:
    pyramid = FeaturePyramid(6, 10, 16)
    maps = [torch.randn(1, 6, 4, 4, requires_grad=True) for _ in range(4)]
    for i, level in enumerate(pyramid(maps, (64, 64))):
        level.sum().backward(retain_graph=True)
        assert [m.grad is not None for m in maps] == [j == i for j in range(4)]
        maps[i].grad = None
