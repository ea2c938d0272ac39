"""Labeled tiles that fit an archive, for scoring."""

import os
from collections.abc import Iterator

import torch
from torch import Tensor

from ..datasets import FolderDataset, PackedDataset, TileDataset, collate_skipping
from ..datasets.band_choice import UnnamedBandsError
from ..datasets.files import PathLike, evenly_spaced
from ..datasets.images import depth
from .archive import Archive, look
from .base import TileDataModule

#: Tiles of a class, at least.
LEAST = 3


class LabeledTiles:
    """Tiles in class folders, for scoring only.

    Attributes:
        dataset: The tiles, with the bands and the size of the archive.
        classes: Names of the classes in the order of their labels.
        indices: Tiles that are used: as many of each class, evenly spaced.
    """

    def __init__(self, folder: PathLike, archive: Archive, limit: int = 2000) -> None:
        """Find labeled tiles that fit an archive.

        Args:
            folder: Folder with one folder per class.
            archive: The archive that a model is adapted to.
            limit: Most tiles to use.

        Raises:
            FileNotFoundError: If there is no such folder, or it is empty.
            ValueError: If it has no class folders, too few tiles of a class, or other bands or another pixel
                type than the archive.
        """
        try:
            found = look(folder, archive.bands, 1, archive.image_size, kind='tiles')
        except UnnamedBandsError:
            # The bands of the same files, as the user has named them.
            numbers = [f'{b}={archive.file_bands.index(b) + 1}' for b in archive.bands]
            found = look(folder, numbers, 1, archive.image_size, kind='tiles')
        if len(found.classes) < 2:
            raise ValueError(
                f'labels={found.source} needs images in at least two class folders, such as '
                f'{os.path.join(found.source, "forest", "1.tif")}; found {len(found.classes)}.'
            )
        if depth(found.dtype) != depth(archive.dtype):
            raise ValueError(
                f'labels={found.source} has {found.dtype} pixels, the archive {archive.source} has '
                f'{archive.dtype}: give labeled tiles of the same range.'
            )
        init = found.settings['init_args']
        if found.kind == 'pack':
            self.dataset: TileDataset = PackedDataset(folder, init['bands'], archive.image_size)
        else:
            self.dataset = FolderDataset(
                folder, init['bands'], init['file_bands'], labeled=True, size=archive.image_size
            )
        self.classes = self.dataset.classes
        assert self.dataset.labels is not None
        label = torch.tensor(self.dataset.labels)
        share = max(1, limit // len(self.classes))
        members = [(label == c).nonzero().flatten().tolist() for c in range(len(self.classes))]
        few = min(range(len(members)), key=lambda c: len(members[c]))
        if len(members[few]) < LEAST:
            raise ValueError(
                f'labels={found.source} has {len(members[few])} of {self.classes[few]}: give {LEAST} tiles '
                'or more of each class, to train on, to choose by and to test on'
            )
        self.indices = sorted(m[i] for m in members for i in evenly_spaced(len(m), share))

    def __len__(self) -> int:
        """Return the number of tiles that are used."""
        return len(self.indices)

    def batches(self, datamodule: TileDataModule, size: int = 64) -> Iterator[dict[str, Tensor]]:
        """Read the tiles, normalized as the archive's.

        Args:
            datamodule: The archive's data module, set up.
            size: Tiles in a batch.

        Yields:
            `image`, shape (B, C, H, W), and `label`, shape (B,); damaged tiles are left out.
        """
        for start in range(0, len(self), size):
            samples = [self.dataset[i] for i in self.indices[start : start + size]]
            if any('image' in sample for sample in samples):
                yield datamodule.aug(collate_skipping(samples))
