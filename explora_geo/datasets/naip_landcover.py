"""NAIP tiles with land-cover classes, as Ayush et al. use them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .files import PathLike
from .images import BadTileError, readable
from .listed import ListedDataset


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

    def _read(self, path: Path) -> NDArray[Any]:
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
