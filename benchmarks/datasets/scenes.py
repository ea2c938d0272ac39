"""Aerial scenes with one class each: RESISC45 and NAIP land cover."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from explora_geo.bands import RGB, canonical
from explora_geo.datamodules.base import Augment, Part, TileDataModule
from explora_geo.datamodules.statistics import Statistics
from explora_geo.datasets.base import TileDataset
from explora_geo.datasets.folder import FolderDataset
from explora_geo.datasets.images import BadTileError, readable
from explora_geo.datasets.remote import PathLike


class RESISC45DataModule(TileDataModule):
    """RESISC45: 31,500 aerial images of 256x256 pixels in 45 classes, with TorchGeo's layout and splits.

    The layout is ``root/NWPU-RESISC45/<class>/<class>_<n>.jpg`` and ``root/resisc45-<split>.txt`` with the
    file names of a split; TorchGeo's own class downloads both (https://doi.org/10.1109/jproc.2017.2675998).
    """

    kind = FolderDataset
    nadir = True
    published = Statistics(
        dict(zip(RGB, (93.89391792, 97.11226906, 87.56775284), strict=True)),
        dict(zip(RGB, (51.84919672, 47.2365918, 47.06308786), strict=True)),
    )

    def make(self, part: Part) -> Dataset[Any]:
        """Build a published split; predicting uses the test split."""
        listed = Path(self.root) / f'resisc45-{"test" if part == "predict" else part}.txt'
        if not listed.is_file():
            download = f'RESISC45({str(self.root)!r}, download=True)'
            raise FileNotFoundError(f'{listed} does not exist: download it through TorchGeo with {download}')
        names, folder = frozenset(listed.read_text(encoding='utf-8').split()), listed.parent / 'NWPU-RESISC45'
        known: dict[str, Any] = {'file_bands': RGB, 'labeled': True}
        return FolderDataset(folder, is_valid_file=lambda path: path.name in names, **known, **self.kwargs)


class NAIPLandCoverDataset(TileDataset):
    """Tiles stored as NumPy arrays, (H, W, 4) uint8."""

    file_bands = ('red', 'green', 'blue', 'nir')

    def _read(self, index: int) -> NDArray[Any]:
        path = self.files[index]
        with readable(path):
            tile = np.load(path, mmap_mode='r')
        if tile.ndim != 3 or tile.shape[2] != len(self.file_bands):
            raise BadTileError(f'has shape {tile.shape}, expected (H, W, {len(self.file_bands)})')
        if tile.dtype != self.dtype:
            raise BadTileError(f'has {tile.dtype} pixels, expected {self.dtype}')
        return np.ascontiguousarray(tile[:, :, self._positions].transpose(2, 0, 1))


class NAIPLandCoverDataModule(TileDataModule):
    """Aerial tiles of California in 66 classes of the Cropland Data Layer, as used by Ayush et al.

    The files are ``root/<i>tile.npy``, one ``root/y*.npy`` with a class per tile, and ``root/splits.npy``
    with 0 (train), 1 (val) or 2 (test) per tile. The test combines val and test, as published
    (https://arxiv.org/abs/2011.09980).
    """

    kind = NAIPLandCoverDataset
    nadir = True
    augmentation = Augment((0.2, 1.0), horizontal_flip=True, vertical_flip=True, quarter_turns=True)
    published: Statistics | None = Statistics(
        dict(zip(RGB, (255 * x for x in (0.47996818, 0.47633689, 0.42402868)), strict=True)),
        dict(zip(RGB, (255 * x for x in (0.17774512, 0.13703743, 0.11909943)), strict=True)),
    )

    def __init__(self, root: PathLike, bands: Sequence[str] | None = RGB, **kwargs: Any) -> None:
        """Initialize a new NAIPLandCoverDataModule instance; see :class:`TileDataModule`."""
        super().__init__(root, bands, **kwargs)
        if bands is None or not {canonical(b) for b in bands} <= set(RGB):
            self.published = None

    def make(self, part: Part) -> Dataset[Any]:
        """Build a published split; testing and predicting combine val and test."""
        folder = Path(self.root)
        targets = sorted(folder.glob('y*.npy'))
        if not (folder / 'splits.npy').is_file() or len(targets) != 1:
            found = [p.name for p in targets]
            raise FileNotFoundError(f'{folder} must contain splits.npy and exactly one y*.npy, found {found}')
        lists = []
        for path in (targets[0], folder / 'splits.npy'):
            try:
                lists.append(np.load(path))
            except (ValueError, OSError, EOFError) as error:
                raise ValueError(f'{path} cannot be read ({error}); download it again') from error
        codes, splits = lists
        if codes.shape != splits.shape or codes.ndim != 1:
            shapes = f'{codes.shape} and {splits.shape}'
            raise ValueError(f'{targets[0]} and splits.npy must list the same tiles, got shapes {shapes}')
        # Layer codes become labels in ascending order, the same in all splits.
        values, labels = np.unique(codes, return_inverse=True)
        chosen = np.flatnonzero(np.isin(splits, {'train': [0], 'val': [1]}.get(part, [1, 2])))
        files, names = [folder / f'{i}tile.npy' for i in chosen], [str(v) for v in values]
        return NAIPLandCoverDataset(folder, files, labels[chosen].tolist(), names, **self.kwargs)
