"""Packs: all tiles of an archive in one memory-mapped file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .base import TileDataset, Transforms
from .files import PathLike
from .images import BadTileError

FORMAT = 'explora_geo.pack'
#: Files of a pack: what it is, its pixels, the state of each tile, its checksum, and why some are skipped.
HEADER, PIXELS, STATES, CHECKS, REASONS = (
    *('pack.json', 'pixels.bin', 'states.npy', 'checks.npy', 'skipped.json'),
)
#: States of a tile in a pack.
OPEN, DONE, SKIPPED = 0, 1, 2


@dataclass(frozen=True)
class PackHeader:
    """Header of a pack.

    Attributes:
        shape: Tiles, bands, height and width.
        dtype: NumPy name of the pixel type.
        bands: Names of the bands, in order.
        files: Names of the source files, relative to their folder.
        classes: Names of the classes in the order of their labels.
        labels: Label of each tile, or None if unlabeled.
        format: Kind of file.
    """

    shape: tuple[int, int, int, int]
    dtype: str
    bands: tuple[str, ...]
    files: tuple[str, ...]
    classes: tuple[str, ...]
    labels: tuple[int, ...] | None
    format: str = FORMAT

    @property
    def nbytes(self) -> int:
        """Size of all pixels."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


class PackedDataset(TileDataset):
    """A pack that :func:`~explora_geo.datasets.packing.pack` made of a folder, with the folder's samples.

    Pixels are mapped into memory, so that workers share them and no file is decoded.
    """

    def __init__(
        self,
        root: PathLike,
        bands: Sequence[str] | None = None,
        size: int | None = None,
        strict: bool = False,
        transforms: Transforms | None = None,
    ) -> None:
        """Initialize a new PackedDataset instance.

        Args:
            root: Folder of the pack.
            bands: Names of the bands to return, in any order; all bands if None.
            size: Side of the returned images; that of the pack if None.
            strict: Whether to raise on a tile that could not be packed instead of skipping it.
            transforms: Function applied to each sample.

        Raises:
            FileNotFoundError: If there is no pack.
            ValueError: If it is not complete, or bands do not fit.
        """
        self.root = Path(root)
        self.header = read_header(self.root)
        self._states = read_array(self.root, STATES, self.header)
        if (self._states == OPEN).any():
            raise ValueError(
                f'The pack {self.root} lacks {int((self._states == OPEN).sum())} of {len(self._states)} '
                'tiles; run the same explora-geo pack command again to finish it.'
            )
        self.file_bands = self.header.bands
        files = [Path(name) for name in self.header.files]
        labels, classes = self.header.labels, self.header.classes
        super().__init__(self.root, files, labels, classes, bands, size, strict, transforms)
        self._reasons = read_reasons(self.root)
        self._pixels = open_pixels(self.root, self.header)

    @property
    def skipped_count(self) -> int:
        """Tiles that could not be packed."""
        return int((self._states == SKIPPED).sum())

    def _read(self, index: int) -> NDArray[Any]:
        if self._states[index] == SKIPPED:
            raise BadTileError(self._reasons.get(str(self.files[index]), 'it was not packed'))
        return self._pixels[index, self._positions]

    def __getstate__(self) -> dict[str, Any]:
        """Drop the memory map, which each worker process opens itself."""
        return {**self.__dict__, '_pixels': None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the memory map again."""
        self.__dict__.update(state)
        self._pixels = open_pixels(self.root, self.header)


def open_pixels(root: Path, header: PackHeader, mode: Literal['r', 'r+'] = 'r') -> NDArray[Any]:
    """Memory-map the pixels of a pack, shape (N, C, H, W).

    Raises:
        FileNotFoundError: If they are gone.
        ValueError: If they are cut short.
    """
    path = root / PIXELS
    size = path.stat().st_size
    if size != header.nbytes:
        raise ValueError(
            f'{path} has {size:,} bytes instead of {header.nbytes:,}; remove the pack and make it again.'
        )
    return np.memmap(path, header.dtype, mode, shape=header.shape)


def read_array(root: Path, name: str, header: PackHeader) -> NDArray[Any]:
    """Read an array with one value per tile of a pack, shape (N,).

    Raises:
        FileNotFoundError: If it is gone.
        ValueError: If it is damaged.
    """
    path = root / name
    try:
        found = np.load(path)
    except (ValueError, EOFError) as error:
        raise ValueError(_damaged(path, error)) from error
    if not isinstance(found, np.ndarray) or found.shape != header.shape[:1]:
        raise ValueError(_damaged(path, f'shape {np.shape(found)} for {header.shape[0]} tiles'))
    return found


def read_reasons(root: Path) -> dict[str, str]:
    """Read why tiles of a pack were skipped, by file.

    Raises:
        FileNotFoundError: If it is gone.
        ValueError: If it is damaged.
    """
    path = root / REASONS
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(_damaged(path, error)) from error
    if not isinstance(found, dict):
        raise ValueError(_damaged(path, 'no mapping'))
    return found


def _damaged(path: Path, why: object) -> str:
    return f'{path} is damaged ({why}); remove the pack and make it again.'


def is_pack(root: PathLike) -> bool:
    """Whether a folder is a pack."""
    return (Path(root) / HEADER).is_file()


def read_header(root: Path) -> PackHeader:
    """Read what a pack says of itself.

    Raises:
        FileNotFoundError: If there is no pack.
        ValueError: If its header is damaged.
    """
    path = root / HEADER
    if not path.is_file():
        raise FileNotFoundError(f'{root} is no pack: there is no {path}.')
    try:
        fields = json.loads(path.read_text(encoding='utf-8'))
        labels = fields['labels']
        header = PackHeader(
            tuple(fields['shape']),
            fields['dtype'],
            tuple(fields['bands']),
            tuple(fields['files']),
            tuple(fields['classes']),
            None if labels is None else tuple(labels),
            fields['format'],
        )
        _check_header(header)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'The header {path} is damaged ({error}); pack the archive again.') from error
    if header.format != FORMAT:
        raise ValueError(f'{path} is no header of a pack, its format is {header.format!r}.')
    return header


def _check_header(header: PackHeader) -> None:
    """Check that the parts of a header agree."""
    counts = len(header.shape), header.shape[0], header.shape[1]
    if counts != (4, len(header.files), len(header.bands)) or not all(
        type(side) is int and side > 0 for side in header.shape
    ):
        raise ValueError(f'shape {header.shape} for {len(header.files)} files of {len(header.bands)} bands')
    if np.dtype(header.dtype).kind not in 'iuf':
        raise ValueError(f'pixels of type {header.dtype}')
    labels = header.labels
    if labels is not None and (
        len(labels) != len(header.files) or not all(label in range(len(header.classes)) for label in labels)
    ):
        raise ValueError(f'labels that do not fit {len(header.classes)} classes')
