"""Batch samples, some of which may be skipped."""

import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

Collate = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
#: Samples tried before a training batch without a usable one is an error.
ATTEMPTS = 64


def collate_skipping(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack the good samples of a batch and name the others.

    Args:
        samples: Samples of a dataset; one that could not be used is
            ``{'skipped': '<path>: <reason>'}``.

    Returns:
        The batch: ``image`` of shape (B, C, H, W), ``label`` of shape (B,) if there are labels,
        and, only if samples were skipped, ``skipped``, the list of their messages.

    Raises:
        ValueError: If no sample is good, or the images differ in size.
    """
    good = [sample for sample in samples if 'skipped' not in sample]
    skipped = [sample['skipped'] for sample in samples if 'skipped' in sample]
    if not good:
        raise ValueError(
            f'A batch needs at least one usable tile, but all {len(skipped)} were skipped; '
            f'repair or remove them, first {skipped[:1]}.'
        )
    shapes = sorted({tuple(sample['image'].shape) for sample in good})
    if len(shapes) > 1:
        raise ValueError(
            f'Images of a batch must have one shape (C, H, W), got {shapes[:4]}; '
            'give size to bring all tiles to one size.'
        )
    batch: dict[str, Any] = default_collate(good)
    if skipped:
        batch['skipped'] = skipped
    return batch


class ReplacingCollate:
    """Collate for training: if every sample of a batch is skipped, draw others until one is usable.

    A run of days must not end because a batch, which may be a single tile, is damaged.
    """

    def __init__(
        self,
        collate: Collate,
        dataset: Dataset[Any],
        place: Callable[[int], Any] | None = None,
        count: int = 0,
    ) -> None:
        """Initialize ReplacingCollate.

        Args:
            collate: Makes a batch of samples.
            dataset: Where more samples come from.
            place: From numbers below `count` to indices of the data set, where they are not the same.
            count: How many; as many as the data set has samples if 0.
        """
        self.collate, self.dataset, self.place, self.count = collate, dataset, place, count

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Stack the good samples of a batch and name the others."""
        if all('skipped' in sample for sample in samples):
            # Seeded by the samples, so that a resumed run equals an uninterrupted one.
            seed = zlib.crc32('\n'.join(sample['skipped'] for sample in samples).encode())
            count = self.count or len(self.dataset)  # type: ignore[arg-type]
            order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
            for position in order[:ATTEMPTS].tolist():
                samples = [*samples, self.dataset[self.place(position) if self.place else position]]
                if 'skipped' not in samples[-1]:
                    break
        return self.collate(samples)


class SkippingDataLoader(DataLoader[Any]):
    """DataLoader for evaluation: a batch without a usable sample is skipped with a warning."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Initialize a SkippingDataLoader; see `DataLoader`."""
        collate = kwargs.get('collate_fn') or collate_skipping
        kwargs['collate_fn'] = collate if isinstance(collate, _NamesOnly) else _NamesOnly(collate)
        super().__init__(*args, **kwargs)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Iterate over the batches that hold an image."""
        found, names = False, []
        for batch in super().__iter__():
            if 'image' in batch:
                found = True
                yield batch
            else:
                names = batch['skipped']
                warnings.warn(f'A batch of {len(names)} is left out, first {names[0]}.', stacklevel=2)
        if names and not found:
            raise ValueError(f'No image can be used, first {names[0]}; repair or remove the files.')


class _NamesOnly:
    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        skipped = [sample['skipped'] for sample in samples if 'skipped' in sample]
        return {'skipped': skipped} if len(skipped) == len(samples) else self.collate(samples)
