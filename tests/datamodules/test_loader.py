"""The order of training data follows from seed and epoch, and is gone on with at any batch."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import RandomSampler, Sampler, Subset

from explora_geo.datamodules.loader import EpochSampler, ResumableLoader


class Windows(Sampler[float]):
    """Draws as it is passed over, as samplers of scenes do, from all three random states."""

    def __len__(self) -> int:
        return 12

    def __iter__(self) -> Any:
        for _ in range(12):
            yield round(random.random() + float(np.random.rand()) + float(torch.rand(())), 6)


class Numbers:
    """A dataset of its own indices."""

    def __init__(self, count: int) -> None:
        self.files = [f'tile_{i}.tif' for i in range(count)]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> int:
        return index


def loader(
    count: int = 18, workers: int = 0, world: int = 1, rank: int = 0, seed: int = 5, drop_last: bool = True
) -> ResumableLoader:
    data = Numbers(count)
    sampler = EpochSampler(RandomSampler(data), seed, world, rank)
    return ResumableLoader(
        data,
        batch_size=4,
        sampler=sampler,
        drop_last=drop_last,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def batches(source: ResumableLoader, epoch: int | None = None) -> list[list[int]]:
    if epoch is not None:
        source.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return [batch.tolist() for batch in source]


def test_epochs_differ_and_seeds_differ_and_each_repeats() -> None:
    first = [batches(loader(), epoch) for epoch in range(3)]
    torch.manual_seed(99)  # what ran before does not count
    assert first == [batches(loader(), epoch) for epoch in range(3)]
    assert len({str(x) for x in first}) == 3 and batches(loader(seed=6)) != first[0]
    assert all(len({i for b in epoch for i in b}) == 16 for epoch in first)


def test_the_draw_leaves_all_random_states_alone() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    batches(loader())
    assert draw() == expected


def test_a_sampler_that_draws_as_it_goes_is_drawn_the_same_way() -> None:
    orders = []
    for _ in range(2):
        sampler = EpochSampler(Windows(), 1)
        sampler.draw(0)
        orders.append(list(sampler))
        sampler.draw(1)
        orders.append(list(sampler))
    assert orders[:2] == orders[2:] and orders[0] != orders[1]


@pytest.mark.parametrize('workers', [0, 2])
def test_every_place_is_gone_on_with(workers: int) -> None:
    whole = [batch for epoch in range(3) for batch in batches(loader(), epoch)]
    for done in (0, 3, 4, 7, 11) if not workers else (5,):
        source = loader(workers=workers, seed=0)
        source.load_state_dict({'epoch': done // 4, 'batches': done % 4, 'seed': 5})
        found = batches(source)
        for epoch in range(done // 4 + 1, 3):
            found += batches(source, epoch)
        assert found == whole[done:]


def test_the_state_says_what_was_handed_out_not_what_was_prefetched() -> None:
    source = loader(workers=2)
    assert len(source) == 4
    passing = iter(source)
    for done in range(1, 4):
        next(passing)
        assert source.state_dict() == {'epoch': 0, 'batches': done, 'seed': 5}
    next(passing)
    assert source.state_dict() == {'epoch': 1, 'batches': 0, 'seed': 5}


def test_processes_share_what_one_would_see() -> None:
    parts = [loader(16, world=2, rank=rank) for rank in (0, 1)]
    whole = ResumableLoader(
        Numbers(16), batch_size=8, sampler=EpochSampler(RandomSampler(Numbers(16)), 5), drop_last=True
    )
    for one, two, both in zip(*map(batches, parts), batches(whole), strict=True):
        assert sorted(one + two) == sorted(both)
    odd = [len(EpochSampler(RandomSampler(Numbers(7)), 0, 2, rank)) for rank in (0, 1)]
    assert odd == [4, 4]


@pytest.mark.parametrize('count', [1, 2, 3, 5])
def test_every_process_gets_as_many_of_few_samples(count: int) -> None:
    world = 8  # more than twice as many processes as samples
    parts = [batches(loader(count, world=world, rank=rank, drop_last=False)) for rank in range(world)]
    assert [len(part) for part in parts] == [1] * world
    assert {i for part in parts for batch in part for i in batch} == set(range(count))


def test_the_files_of_the_last_batch_are_known() -> None:
    source = loader()
    assert source.names() == []
    for batch in source:
        assert source.names() == [f'tile_{i}.tif' for i in batch.tolist()]
    part = Subset(Numbers(18), list(range(10, 18)))
    nested = ResumableLoader(part, batch_size=3, sampler=EpochSampler(RandomSampler(part), 0))
    for batch in nested:
        assert nested.names() == [f'tile_{i}.tif' for i in batch.tolist()]
