"""Labelled tiles of the demo, in memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor

from explora_geo.datamodules import FolderDataModule
from explora_geo.datasets import FolderDataset


class Tiles(NamedTuple):
    """Images with labels.

    Attributes:
        image: Images in units of the files until `normalised`, shape (N, C, H, W).
        label: Classes, shape (N,).
    """

    image: Tensor
    label: Tensor

    @classmethod
    def read(cls, root: Path, size: int | None = None) -> Self:
        """Read a labelled folder, images of one size or brought to it."""
        dataset = FolderDataset(root, labelled=True, strict=True, size=size)
        samples = [dataset[i] for i in range(len(dataset))]
        return cls(torch.stack([s['image'] for s in samples]), torch.stack([s['label'] for s in samples]))

    def normalised(self, datamodule: FolderDataModule) -> Self:
        """Apply the datamodule's statistics."""
        mean, std = (x.view(1, -1, 1, 1) for x in (datamodule.mean, datamodule.std))
        return self._replace(image=(self.image - mean) / std)

    def batches(self, size: int = 250) -> Iterator[dict[str, Tensor]]:
        """Sample dicts in order."""
        for image, label in zip(self.image.split(size), self.label.split(size), strict=True):
            yield {'image': image, 'label': label}

    def take(self, index: Tensor) -> Self:
        """A subset."""
        return type(self)(self.image[index], self.label[index])


def split_by_class(label: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Indices of the first share of the tiles of each class, and of the rest."""
    members = [(label == c).nonzero().flatten() for c in label.unique()]
    cuts = [round(share * len(m)) for m in members]
    first = torch.cat([m[:cut] for m, cut in zip(members, cuts, strict=True)])
    return first, torch.cat([m[cut:] for m, cut in zip(members, cuts, strict=True)])


def draw_labels(label: Tensor, per_class: int, seed: int) -> Tensor:
    """Indices of a random draw of the same number of tiles of each class."""
    generator = torch.Generator().manual_seed(seed)
    members = [(label == c).nonzero().flatten() for c in label.unique()]
    return torch.cat([m[torch.randperm(len(m), generator=generator)[:per_class]] for m in members])
