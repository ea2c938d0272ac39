"""Loaders: reproducible, resumable training order; replacement of batches without a usable sample."""

import random
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from math import ceil
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader, DistributedSampler, Sampler, Subset

Collate = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
#: Samples to try before a training batch without a usable one is an error.
ATTEMPTS = 64


class EpochSampler(DistributedSampler[Any]):
    """Any sampler, drawn once per epoch from its own random state.

    The draw depends neither on earlier random draws nor on the number of workers. All processes make the
    same draw and each takes every world-size-th element: together they see what one process would.

    It is a `DistributedSampler` so that Lightning leaves it in place and sets its epoch.
    """

    def __init__(self, sampler: Sampler[Any], seed: int, num_replicas: int = 1, rank: int = 0) -> None:
        """Initialize an EpochSampler for process *rank* of the *num_replicas* that share the draw."""
        super().__init__(cast(Any, sampler), num_replicas, rank, shuffle=True, seed=seed)
        self.sampler = sampler
        self.skip = 0
        self._drawn: list[Any] = []

    def draw(self, epoch: int, skip: int = 0) -> None:
        """Draw an epoch; the next pass leaves out this process's first *skip* elements."""
        self.skip = skip
        seed = int(np.random.SeedSequence((self.seed, epoch)).generate_state(1)[0])
        with isolate_rng(include_cuda=False):
            random.seed(seed)
            np.random.seed(seed)
            torch.default_generator.manual_seed(seed)
            every = list(self.sampler)
        total = ceil(len(every) / self.num_replicas) * self.num_replicas
        # Equal counts for all processes: one without a batch would leave the others waiting.
        self._drawn = list(islice(cycle(every), total))[self.rank :: self.num_replicas]

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the current draw; draw the current epoch if there is none."""
        if not self._drawn:
            self.draw(self.epoch)
        return islice(self._drawn, self.skip, None)

    def place(self, position: int) -> Any:
        """Return the element at a position of the current draw."""
        return self._drawn[position]


class ResumableLoader(DataLoader[Any]):
    """Training data loader whose position in an epoch is part of a checkpoint (Lightning's protocol).

    A resumed run continues with the next batch of the same epoch, without reading earlier ones.
    """

    def __init__(self, dataset: Any, *args: Any, **kwargs: Any) -> None:
        """Initialize a ResumableLoader with `DataLoader` arguments; the sampler is an `EpochSampler`."""
        super().__init__(dataset, *args, **kwargs)
        # Workers are seeded from here, not from training's random state.
        self.generator = torch.Generator()
        self._epoch = self._done = 0
        self._resumed = False

    def __iter__(self) -> Any:
        """Start or resume an epoch."""
        sampler = self.sampler
        if isinstance(sampler, EpochSampler):  # Lightning replaces it for `overfit_batches`
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
        """Return the epoch, its finished batches, and the seed of the order."""
        epoch, done = divmod(self._done, max(1, len(self)))
        return {'epoch': self._epoch + epoch, 'batches': done, 'seed': getattr(self.sampler, 'seed', 0)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a saved position with the next pass."""
        self._epoch, self._done, self._resumed = state['epoch'], state['batches'], True
        if isinstance(self.sampler, EpochSampler):
            self.sampler.seed = state['seed']

    def names(self) -> list[str]:
        """Return the files of the last batch, or sample numbers if the dataset names no files."""
        size, sampler = self.batch_size or 1, self.sampler
        if not isinstance(sampler, EpochSampler) or not self._done:
            return []
        places = range((self._done - 1) * size, min(self._done * size, len(sampler)))
        dataset: Any = self.dataset
        found = [sampler.place(i) for i in places]
        while isinstance(dataset, Subset):
            dataset, found = dataset.dataset, [dataset.indices[i] for i in found]
        files: Any = getattr(dataset, 'files', ())
        return [str(files[i]) if files and isinstance(i, int) else f'sample {i}' for i in found]


class ReplacingCollate:
    """Training collate function that draws further samples if every sample of a batch is skipped.

    A run of several days must not end because a batch, which may be a single tile, is damaged.
    """

    def __init__(self, collate: Collate, dataset: Any, order: EpochSampler | None = None) -> None:
        """Initialize a ReplacingCollate; *order* supplies the indices of the data set if not 0, 1, 2, ..."""
        self.collate, self.dataset, self.order = collate, dataset, order

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Stack the usable samples and list the skipped ones; raise ValueError if none is usable."""
        if all('skipped' in sample for sample in samples):
            # Seeded by the samples, so that a resumed run matches an uninterrupted one.
            seed = zlib.crc32('\n'.join(sample['skipped'] for sample in samples).encode())
            count = len(self.dataset if self.order is None else self.order)
            positions = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
            for position in positions[:ATTEMPTS].tolist():
                index = position if self.order is None else self.order.place(position)
                samples = [*samples, self.dataset[index]]
                if 'skipped' not in samples[-1]:
                    break
            else:
                raise ValueError(
                    f'a batch needs at least one usable tile, but all {len(samples)} were skipped '
                    f'(first: {samples[0]["skipped"]}); repair or remove them'
                )
        return self.collate(samples)


class SkippingDataLoader(DataLoader[Any]):
    """DataLoader for evaluation that skips a batch without a usable sample and warns."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Iterate over the batches that hold an image; raise ValueError if none does."""
        found, names = False, []
        for batch in super().__iter__():
            if 'image' in batch:
                found = True
                yield batch
            else:
                names = batch['skipped']
                warnings.warn(
                    f'Skipping a batch of {len(names)} unusable images (first: {names[0]})', stacklevel=2
                )
        if names and not found:
            raise ValueError(f'no images can be used (first: {names[0]}); repair or remove the files')
