"""SpaceNet 1, buildings of Rio de Janeiro, read through TorchGeo's class."""

import math
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import rasterio
import torch
from torch.utils.data import Dataset, Subset
from torchgeo.datasets import DatasetNotFoundError, SpaceNet1

from explora_geo.bands import RGB
from explora_geo.datamodules.base import Augment, Part, TileDataModule
from explora_geo.datasets.base import TileDataset
from explora_geo.datasets.images import BadTileError, read_header, readable, resize
from explora_geo.datasets.remote import PathLike

#: Image bands by TorchGeo's name for the image type.
IMAGE_BANDS = {
    '3band': RGB,
    '8band': ('coastal', 'blue', 'green', 'yellow', 'red', 'red_edge', 'nir1', 'nir2'),
}


class SpaceNet1Dataset(TileDataset):
    """SpaceNet 1 through TorchGeo's class, with the black regions outside the scene marked."""

    colors = ((235, 230, 220), (190, 60, 40))

    def __init__(
        self,
        root: PathLike,
        split: Literal['train', 'test'] = 'train',
        image: Literal['3band', '8band'] = '3band',
        ignore_black: int | None = 255,
        **kwargs: Any,
    ) -> None:
        """Initialize a new SpaceNet1Dataset instance; see :class:`SpaceNet1DataModule`."""
        if image not in IMAGE_BANDS:
            raise ValueError(f'image must be one of {", ".join(IMAGE_BANDS)}, got {image!r}')
        self.file_bands, self.ignore_black = IMAGE_BANDS[image], ignore_black
        try:
            self.source = SpaceNet1(str(root), split, image=image)
        except DatasetNotFoundError as error:
            folder = Path(root, 'SN1_buildings', split, image)
            raise FileNotFoundError(f'{folder} contains no SpaceNet 1 images: check the path') from error
        files = [Path(path) for path in self.source.images]
        super().__init__(root, files, None, ('other', 'building'), **kwargs)

    def _sample(self, index: int) -> dict[str, Any]:
        """Return the image and, except in the test part, ``mask``, int64, shape (H, W)."""
        file, names = self.files[index], self.file_bands
        read_header(file).check_count(names)
        with readable(file, RuntimeError):  # geopandas' reader raises its own subclass
            found = self.source[index]
        pixels = found['image'].numpy()
        black = (pixels == 0).all(0)
        pixels = resize(pixels, self.size)
        sample: dict[str, Any] = {'image': torch.from_numpy(pixels[self._positions].copy())}
        if 'mask' in found:
            mask = found['mask'].long().clamp(max=1)
            if self.ignore_black is not None:
                mask[torch.from_numpy(black)] = self.ignore_black
            sample['mask'] = torch.from_numpy(resize(mask.numpy()[None], self.size, nearest=True)[0])
        return sample

    def blocks(self, side: float) -> list[str]:
        """Return the ground block of each image's center, *side* degrees wide; the path if it is damaged."""
        found = [str(file) for file in self.files]
        for i, file in enumerate(self.files):
            with suppress(BadTileError), readable(file), rasterio.open(file) as source:
                x, y = source.lnglat()
                found[i] = f'{math.floor(x / side)}, {math.floor(y / side)}'
        return found


class SpaceNet1DataModule(TileDataModule):
    """SpaceNet 1, with its labeled images split here: the published test images have no labels.

    The split ``names`` has the paper's sizes, 5,000 training and 1,940 test images, chosen by the SHA-256 of
    the file names. Images are adjacent, so these test images have neighbors in training; ``blocks`` splits
    by whole blocks of ground, about 1 km wide, in the same proportions.
    """

    #: Share of the paper's 6,940 images used for training, and the side of a ground block, degrees.
    share, block = 5000 / 6940, 0.01

    kind = SpaceNet1Dataset
    nadir = True
    augmentation = Augment((0.5, 1.0), horizontal_flip=True, vertical_flip=True, quarter_turns=True)

    def __init__(
        self,
        root: PathLike,
        image: Literal['3band', '8band'] = '3band',
        split: Literal['names', 'blocks'] = 'names',
        val_split: float = 0.1,
        ignore_black: int | None = 255,
        **kwargs: Any,
    ) -> None:
        """Initialize a new SpaceNet1DataModule instance.

        Args:
            root: Folder that holds ``SN1_buildings``.
            image: Pan-sharpened color (``3band``) or eight bands.
            split: Split labeled images by ``names`` or by whole ``blocks`` of ground.
            val_split: Share of the training images held out for validation, in [0, 1); the paper has none.
            ignore_black: Mask value outside the scene, for the task's ``ignore_index``; None counts black
                pixels as ``other``, as the paper does.
            **kwargs: Images, loading, augmentation and statistics; see :class:`TileDataModule`.
        """
        if split not in ('names', 'blocks'):
            raise ValueError(f'split must be names or blocks, got {split!r}')
        if not 0 <= val_split < 1:
            raise ValueError(f'val_split must be in [0, 1), got {val_split}')
        super().__init__(root, **kwargs)
        self.kwargs |= {'image': image, 'ignore_black': ignore_black}
        self.split, self.val_split = split, val_split

    def make(self, part: Part) -> Dataset[Any] | None:
        """Build a part of the labeled images; predicting uses the published test images without labels."""
        if part == 'predict':
            try:
                return SpaceNet1Dataset(self.root, 'test', **self.kwargs)
            except FileNotFoundError:
                part = 'test'
        labeled = SpaceNet1Dataset(self.root, 'train', **self.kwargs)
        names = (
            [Path(file).name for file in labeled.files]
            if self.split == 'names'
            else labeled.blocks(self.block)
        )
        order = sorted(range(len(names)), key=lambda i: (sha256(names[i].encode()).hexdigest(), i))
        end = _border(names, order, round(len(order) * self.share))
        start = _border(names, order, end - round(end * self.val_split))
        parts = {'train': order[:start], 'val': order[start:end], 'test': order[end:]}
        return Subset(labeled, sorted(parts[part])) if parts[part] or part != 'val' else None


def _border(names: Sequence[str], order: Sequence[int], count: int) -> int:
    """Return the first boundary between two names at or after a position, so no name is in two parts."""
    while 0 < count < len(order) and names[order[count]] == names[order[count - 1]]:
        count += 1
    return count
