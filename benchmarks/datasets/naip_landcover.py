"""NAIP tiles with land-cover classes, as Ayush et al. use them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from explora_geo.bands import RGB, canonical
from explora_geo.datamodules.base import Part, TileDataModule
from explora_geo.datamodules.settings import Augment
from explora_geo.datamodules.statistics import Statistics
from explora_geo.datasets.files import PathLike
from explora_geo.datasets.images import BadTileError, readable
from explora_geo.datasets.listed import ListedDataset


class NAIPLandCoverDataset(ListedDataset):
    """Aerial tiles of California in 66 classes of the Cropland Data Layer, stored as NumPy arrays.

    The layout is ``root/<i>tile.npy``, (H, W, 4) uint8; one file ``root/y*.npy`` with a class per tile; and
    ``root/splits.npy`` with 0 (train), 1 (val) or 2 (test) per tile. Published scores use val and test
    together.

    If you use this dataset in your research, please cite https://arxiv.org/abs/2011.09980.
    """

    file_bands = ('red', 'green', 'blue', 'nir')

    def __init__(
        self,
        root: PathLike,
        split: Literal['train', 'val', 'test', 'val+test'] = 'train',
        bands: Sequence[str] | None = ('red', 'green', 'blue'),
        size: int | None = 224,
        strict: bool = False,
        transforms: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        """Initialize a new NAIPLandCoverDataset instance.

        Args:
            root: Folder of the arrays.
            split: Part.
            bands: Names of the bands to return, in any order.
            size: Side of the returned images; their own if None.
            strict: Whether to raise on a tile that cannot be used instead of skipping it.
            transforms: Function applied to each sample.

        Raises:
            FileNotFoundError: If an array does not exist.
            ValueError: If the split is unknown or the arrays do not fit.
        """
        parts = {'train': (0,), 'val': (1,), 'test': (2,), 'val+test': (1, 2)}
        if split not in parts:
            raise ValueError(f'split must be one of {", ".join(parts)}, got {split!r}.')
        folder = Path(root)
        targets = sorted(folder.glob('y*.npy'))
        if not (folder / 'splits.npy').is_file() or len(targets) != 1:
            raise FileNotFoundError(
                f'{folder} must hold splits.npy and exactly one y*.npy beside the tiles, found '
                f'{[p.name for p in targets]}.'
            )
        codes, splits = _read_list(targets[0]), _read_list(folder / 'splits.npy')
        if codes.shape != splits.shape or codes.ndim != 1:
            raise ValueError(
                f'{targets[0].name} and splits.npy must list the same tiles, got shapes {codes.shape} and '
                f'{splits.shape}.'
            )
        # Codes of the layer become labels in ascending order, over all parts alike.
        values, labels = np.unique(codes, return_inverse=True)
        chosen = np.flatnonzero(np.isin(splits, parts[split]))
        super().__init__(
            folder,
            [folder / f'{i}tile.npy' for i in chosen],
            labels[chosen].tolist(),
            [str(v) for v in values],
            bands,
            size,
            strict,
            transforms,
        )

    def _read(self, index: int) -> NDArray[Any]:
        path = self.files[index]
        with readable(path):
            tile = np.load(path, mmap_mode='r')
        if tile.ndim != 3 or tile.shape[2] != len(self.file_bands):
            raise BadTileError(f'its shape is {tile.shape} instead of (H, W, {len(self.file_bands)})')
        if tile.dtype != self.dtype:
            raise BadTileError(f'its pixels are {tile.dtype} instead of {self.dtype}')
        return np.ascontiguousarray(tile[:, :, self._positions].transpose(2, 0, 1))


def _read_list(path: Path) -> NDArray[Any]:
    try:
        with readable(path):
            found: NDArray[Any] = np.load(path)
    except BadTileError as error:
        raise ValueError(f'{path}: {error}; get it again.') from error
    return found


class NAIPLandCoverDataModule(TileDataModule):
    """LightningDataModule for NAIP land cover; tests use val and test together, as published."""

    nadir = True

    augmentation = Augment((0.2, 1.0), horizontal_flip=True, vertical_flip=True, quarter_turns=True)
    published: Statistics | None = Statistics(
        dict(zip(RGB, (255 * x for x in (0.47996818, 0.47633689, 0.42402868)), strict=True)),
        dict(zip(RGB, (255 * x for x in (0.17774512, 0.13703743, 0.11909943)), strict=True)),
    )

    def __init__(self, root: PathLike, bands: Sequence[str] | None = RGB, **kwargs: Any) -> None:
        """Initialize a new NAIPLandCoverDataModule instance.

        Args:
            root: Folder of the arrays.
            bands: Names of the bands to use; statistics are published for red, green and blue.
            **kwargs: Images, loading, augmentation and statistics; see :class:`TileDataModule`.
        """
        super().__init__(NAIPLandCoverDataset, root, bands, **kwargs)
        if bands is None or not {canonical(b) for b in bands} <= set(RGB):
            self.published = None

    def make(self, part: Part) -> Dataset[Any]:
        """One of the published splits; val and test together to test and predict."""
        split: Any = part if part in ('train', 'val') else 'val+test'
        return NAIPLandCoverDataset(self.root, split, **self.kwargs)
