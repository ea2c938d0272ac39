"""Where slots become one grid, tokens one vector, and orientations an average."""

import pytest
import torch
from einops import rearrange
from torch import Tensor
from torch.testing import assert_close

from explora_geo.models import Features
from explora_geo.models.readout import (
    average_maps,
    evenly_spaced,
    pool,
    reduce_slots,
    to_map,
    turn,
    turn_back,
)


def features(slots: int = 2) -> Features:
    return Features(torch.randn(3, 4), torch.randn(3, slots, 5, 4))


def test_slots_are_averaged_or_set_side_by_side() -> None:
    patches = features().patches
    assert_close(reduce_slots(patches, 'mean'), (patches[:, 0] + patches[:, 1]) / 2)
    assert_close(reduce_slots(patches, 'concat'), torch.cat([patches[:, 0], patches[:, 1]], dim=-1))


def test_class_tokens_of_all_blocks_and_the_mean_patch_of_the_last_are_read() -> None:
    found = [features(), features()]
    mean = found[1].patches.mean((1, 2))
    assert_close(pool(found, 'avg'), mean)
    assert_close(pool(found, 'cls'), torch.cat([found[0].cls, found[1].cls], 1))
    assert_close(pool(found, 'cls+avg'), torch.cat([found[0].cls, found[1].cls, mean], 1))
    assert pool(found, 'avg', 'concat').shape == (3, 8)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match='tokens must be cls, avg or cls'):
        pool([features()], 'max')  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='slots must be mean or concat'):
        reduce_slots(features().patches, 'first')  # type: ignore[arg-type]


def test_blocks_are_evenly_spaced_over_the_depth() -> None:
    assert evenly_spaced(12) == [2, 5, 8, 11]
    assert evenly_spaced(24) == [5, 11, 17, 23]
    assert evenly_spaced(2) == [0, 0, 0, 1]


def test_patches_keep_their_place_on_the_map() -> None:
    patches = torch.randn(1, 2, 6, 3)
    found = to_map(Features(torch.zeros(1, 3), patches), (2, 3), 'mean')
    assert_close(found, rearrange(patches.mean(1), 'b (h w) d -> b d h w', h=2, w=3))


@pytest.mark.parametrize('number', range(8))
def test_turning_back_undoes_a_turn(number: int) -> None:
    image = torch.randn(2, 3, 4, 6)
    assert torch.equal(turn_back(turn(image, number), number), image)


def test_the_eight_orientations_differ() -> None:
    image = torch.randn(4, 4)
    assert len({tuple(turn(image, n).flatten().tolist()) for n in range(8)}) == 8


@pytest.mark.parametrize('turns', [4, 8])
def test_averaged_maps_turn_with_the_image_and_need_not_be_square(turns: int) -> None:
    image, weight = torch.randn(2, 3, 8, 12), torch.randn(1, 3, 3, 3)

    def function(x: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(x, weight, padding=1)

    expected = average_maps(function, image, turns)
    for number in range(turns):
        found = average_maps(function, turn(image, number), turns)
        assert_close(found, turn(expected, number), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(function(image), expected, atol=1e-3)
    assert torch.equal(average_maps(function, image), function(image))


@pytest.mark.parametrize('turns', [0, 2, 16])
def test_another_number_of_turns_is_refused(turns: int) -> None:
    with pytest.raises(ValueError, match=f'turns must be 1, 4 .* got {turns}'):
        average_maps(lambda x: x, torch.randn(1, 3, 4, 4), turns)
