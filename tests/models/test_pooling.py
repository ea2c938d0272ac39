"""Where slots become one grid, and tokens one vector."""

import pytest
import torch
from torch.testing import assert_close

from explora_geo.models import Features
from explora_geo.models.pooling import pool, reduce_slots


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
