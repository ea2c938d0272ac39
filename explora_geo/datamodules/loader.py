"""Reproducible, resumable order of training data."""

import random
from collections.abc import Iterator
from itertools import cycle, islice
from math import ceil
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, DistributedSampler, Sampler, Subset


class EpochSampler(DistributedSampler[Any]):
    """Any sampler, drawn once per epoch from a random state of its own.

    The draw depends on neither what ran before nor the number of workers, and all processes make the same
    one, of which each takes every world-size-th element: together they see what one process would.

    It is a `DistributedSampler` so that Lightning leaves it in place and tells it the epoch.
    """

    def __init__(self, sampler: Sampler[Any], seed: int, num_replicas: int = 1, rank: int = 0) -> None:
        """Initialize an EpochSampler.

        Args:
            sampler: What is drawn from, of a known length.
            seed: Seed of all epochs.
            num_replicas: Processes that share the draw.
            rank: Number of this process.
        """
        super().__init__(cast(Any, sampler), num_replicas, rank, shuffle=True, seed=seed)
        self.sampler = sampler
        self.skip = 0
        self._drawn: list[Any] = []

    def draw(self, epoch: int, skip: int = 0) -> None:
        """Draw an epoch.

        Args:
            epoch: Number of the epoch.
            skip: Elements of this process that the next pass leaves out.
        """
        self.skip = skip
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        seed = int(np.random.SeedSequence((self.seed, epoch)).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        try:
            every = list(self.sampler)
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])
        total = ceil(len(every) / self.num_replicas) * self.num_replicas
        # Equally many for every process: one without a batch would leave the others waiting.
        every = list(islice(cycle(every), total))
        self._drawn = every[self.rank :: self.num_replicas]

    def __iter__(self) -> Iterator[Any]:
        """Pass over what was drawn, or draw the current epoch."""
        if not self._drawn:
            self.draw(self.epoch)
        return islice(self._drawn, self.skip, None)

    def place(self, position: int) -> Any:
        """The element at a position of the current draw."""
        return self._drawn[position]


class ResumableLoader(DataLoader[Any]):
    """Loader of training data whose place in an epoch is part of a checkpoint (Lightning's protocol).

    A resumed run goes on with the next batch of the same epoch, without reading those before.
    """

    def __init__(self, dataset: Any, *args: Any, **kwargs: Any) -> None:
        """Initialize a ResumableLoader.

        Args:
            dataset: What is loaded.
            *args: As for a `DataLoader`.
            **kwargs: Likewise; `sampler` is an `EpochSampler`.
        """
        super().__init__(dataset, *args, **kwargs)
        # Workers are seeded from here, not from the state that training draws from.
        self.generator = torch.Generator()
        self._epoch = self._done = 0
        self._resumed = False

    def __iter__(self) -> Any:
        """Start, or go on with, an epoch."""
        sampler = self.sampler
        if isinstance(sampler, EpochSampler):  # Lightning takes another for `overfit_batches`
            if not self._resumed:
                self._epoch, self._done = sampler.epoch, 0
            self.generator.manual_seed(sampler.seed + self._epoch)
            sampler.draw(self._epoch, self._done * (self.batch_size or 1))
        self._resumed = False
        return self._counted(super().__iter__())

    def _counted(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            self._done += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Epoch, its finished batches, and the seed of the order."""
        epoch, done = divmod(self._done, max(1, len(self)))
        return {'epoch': self._epoch + epoch, 'batches': done, 'seed': getattr(self.sampler, 'seed', 0)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there with the next pass."""
        self._epoch, self._done, self._resumed = state['epoch'], state['batches'], True
        if isinstance(self.sampler, EpochSampler):
            self.sampler.seed = state['seed']

    def names(self) -> list[str]:
        """Files of the batch that was handed out last, as far as the dataset names any."""
        size, sampler = self.batch_size or 1, self.sampler
        if not isinstance(sampler, EpochSampler) or not self._done:
            return []
        found = range((self._done - 1) * size, min(self._done * size, len(sampler)))
        return [_name(self.dataset, sampler.place(i)) for i in found]


def _name(dataset: Any, index: Any) -> str:
    while isinstance(dataset, Subset):
        dataset, index = dataset.dataset, dataset.indices[index]
    files: Any = getattr(dataset, 'files', None)
    known = isinstance(index, int) and isinstance(files, list | tuple) and index < len(files)
    return str(files[index]) if known else f'sample {index}'
