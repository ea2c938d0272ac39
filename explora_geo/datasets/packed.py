"""Packs: an archive's tiles in one memory-mapped file, written in resumable, verified blocks."""

import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from explora_geo._atomic import atomic_path, write_text
from explora_geo.datasets.base import TileDataset
from explora_geo.datasets.images import BadTileError
from explora_geo.datasets.remote import PathLike

FORMAT = 'explora_geo.pack'
#: Files of a pack: header, pixels, states and checksums of the tiles, and reasons for skipped ones.
HEADER, PIXELS, STATES, CHECKS, REASONS = (
    *('pack.json', 'pixels.bin', 'states.npy', 'checks.npy', 'skipped.json'),
)
#: States of a tile in a pack.
OPEN, DONE, SKIPPED = 0, 1, 2
#: Tiles per block: an interrupted run repeats at most one block.
BLOCK = 256


@dataclass(frozen=True)
class PackHeader:
    """Header of a pack."""

    shape: tuple[int, int, int, int]  # tiles, bands, height and width
    dtype: str  # NumPy name of the pixel type
    bands: tuple[str, ...]  # names, in order
    files: tuple[str, ...]  # names of the source files, relative to their folder
    classes: tuple[str, ...]  # names in label order
    labels: tuple[int, ...] | None  # of each tile, or None if unlabeled
    format: str = FORMAT

    @property
    def nbytes(self) -> int:
        """Size of all pixels, bytes."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def __post_init__(self) -> None:
        """Raise ValueError if the parts do not agree."""
        if any(type(side) is not int or side < 1 for side in self.shape) or (
            (len(self.files), len(self.bands)) != self.shape[:-2]
        ):
            raise ValueError(
                f'shape {self.shape} does not match {len(self.files)} files and {len(self.bands)} bands'
            )
        if np.dtype(self.dtype).kind not in 'iuf':
            raise ValueError(f'unsupported pixel type {self.dtype}')
        labels = (0,) * len(self.files) if self.labels is None else self.labels
        if len(labels) != len(self.files) or not set(labels) <= {0, *range(len(self.classes))}:
            raise ValueError(f'labels do not match {len(self.classes)} classes')


class PackedDataset(TileDataset):
    """The samples of a folder, read from a pack that :func:`pack` made of it.

    Pixels are memory-mapped, so that workers share them and no file is decoded.
    """

    def __init__(self, root: PathLike, bands: Sequence[str] | None = None, **kwargs: Any) -> None:
        """Initialize a new PackedDataset instance.

        Args:
            root: Folder of the pack.
            bands: Names of the bands to return, in any order; all bands if None.
            **kwargs: ``size``, ``strict`` and ``transforms`` of :class:`TileDataset`.

        Raises:
            FileNotFoundError: If there is no pack.
            ValueError: If it is damaged or incomplete, or bands do not match.
        """
        root = Path(root)
        self.header = header = read_header(root)
        self._pixels, self._states, _, self._reasons = _open(root, header)
        missing = int((self._states == OPEN).sum())
        if missing:
            raise ValueError(
                f'the pack {root} is missing {missing} of {len(self._states)} tiles; run the same '
                'explora-geo pack command again to finish it'
            )
        self.file_bands = header.bands
        super().__init__(root, list(map(Path, header.files)), header.labels, header.classes, bands, **kwargs)

    @property
    def skipped_count(self) -> int:
        """Number of tiles that could not be packed."""
        return int((self._states == SKIPPED).sum())

    def _read(self, index: int) -> NDArray[Any]:
        if self._states[index] == SKIPPED:
            raise BadTileError(self._reasons.get(str(self.files[index]), 'was not packed'))
        return self._pixels[index, self._positions]

    def __getstate__(self) -> dict[str, Any]:
        """Drop the memory map, which each worker process opens itself."""
        return {**self.__dict__, '_pixels': None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Reopen the memory map."""
        self.__dict__.update(state)
        self._pixels = _open(self.root, self.header)[0]


def is_pack(root: PathLike) -> bool:
    """Return whether a folder is a pack."""
    return (Path(root) / HEADER).is_file()


def pack(dataset: TileDataset, out: PathLike) -> Iterator[tuple[int, int]]:
    """Write all tiles of a folder into a pack, resuming an interrupted run.

    A tile that is unusable, or differs from the first in size or type, is skipped and its reason
    recorded. Each block is read back and verified before it counts as done.

    Args:
        dataset: Folder, whose bands and size the pack takes.
        out: Folder of the pack.

    Yields:
        Number of finished tiles and number of all tiles, after each block.

    Raises:
        ValueError: If *out* holds a pack of other tiles, bands or sizes, or a tile reads back differently
            from how it was written.
    """
    out, header = Path(out), header_of(dataset)
    if is_pack(out):
        found = asdict(read_header(out))
        if different := [name for name, value in asdict(header).items() if value != found[name]]:
            raise ValueError(
                f'{out} contains a pack with other {", ".join(different)}; use another folder or remove it'
            )
    else:
        count = header.shape[0]
        _save(out, {}, np.zeros(count, np.uint32), np.zeros(count, np.uint8))
        with (out / PIXELS).open('wb') as file:
            file.truncate(header.nbytes)
        write_text(out / HEADER, json.dumps(asdict(header)))  # last: it makes the folder a pack
    pixels, states, checks, reasons = _open(out, header, 'r+')
    todo = np.flatnonzero(states == OPEN)
    for start in range(0, len(todo), BLOCK):
        block = todo[start : start + BLOCK]
        for index in block:
            try:
                tile = dataset._load(int(index))
                if tile.shape != header.shape[1:] or tile.dtype != header.dtype:
                    raise BadTileError(
                        f'is {tile.dtype} of shape {tile.shape}, expected {header.dtype} of shape '
                        f'{header.shape[1:]}'
                    )
            except BadTileError as error:
                states[index], reasons[header.files[index]] = SKIPPED, str(error)
            else:
                pixels[index], checks[index], states[index] = tile, zlib.crc32(tile.tobytes()), DONE
        pixels.flush()
        _compare(out, header, checks, block[states[block] == DONE])
        _save(out, reasons, checks, states)
        yield int((states != OPEN).sum()), len(states)
    if not len(todo):
        _compare(out, header, checks, np.flatnonzero(states == DONE))
        yield len(states), len(states)


def header_of(dataset: TileDataset) -> PackHeader:
    """Build the pack header of a folder from its first usable tile.

    Raises:
        ValueError: If no tile is usable.
    """
    for index in range(len(dataset)):
        with suppress(BadTileError):
            first = dataset._load(index)
            return PackHeader(
                (len(dataset), *first.shape),
                str(first.dtype),
                dataset.bands,
                tuple(str(path.relative_to(dataset.root)) for path in dataset.files),
                dataset.classes,
                None if dataset.labels is None else tuple(dataset.labels),
            )
    raise ValueError(f'none of the {len(dataset)} images in {dataset.root} can be used')


def read_header(root: Path) -> PackHeader:
    """Read the header of a pack.

    Raises:
        FileNotFoundError: If there is no pack.
        ValueError: If its header is damaged.
    """
    path = root / HEADER
    if not path.is_file():
        raise FileNotFoundError(f'{root} is not a pack: {path} does not exist')
    try:
        known = json.loads(path.read_text(encoding='utf-8'))
        values = {name: known[name] for name in PackHeader.__dataclass_fields__}
        tuples: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        header = PackHeader(**tuples)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'the header {path} is damaged ({error}); pack the archive again') from error
    if header.format != FORMAT:
        raise ValueError(f'{path} is not a pack header: format must be {FORMAT!r}, got {header.format!r}')
    return header


def _open(root: Path, header: PackHeader, mode: Literal['r', 'r+'] = 'r') -> tuple[Any, Any, Any, Any]:
    """Open memory-mapped pixels, (N, C, H, W), states and checksums, (N,), and skip reasons by file."""
    try:
        size = (root / PIXELS).stat().st_size
        if size != header.nbytes:
            raise ValueError(f'pixels have {size:,} bytes, expected {header.nbytes:,}')
        states, checks = np.load(root / STATES), np.load(root / CHECKS)
        if not states.shape == checks.shape == header.shape[:1]:
            raise ValueError(f'{len(states)} states and {len(checks)} checksums for {header.shape[0]} tiles')
        reasons = dict(json.loads((root / REASONS).read_text(encoding='utf-8')))
    except (ValueError, TypeError, EOFError) as error:
        raise ValueError(f'the pack {root} is damaged ({error}); remove it and pack again') from error
    return np.memmap(root / PIXELS, header.dtype, mode, shape=header.shape), states, checks, reasons


def _save(out: Path, reasons: dict[str, str], checks: NDArray[Any], states: NDArray[Any]) -> None:
    """Write reasons and checksums, then the states, which confirm that the rest is on disk."""
    write_text(out / REASONS, json.dumps(reasons))
    for name, values in ((CHECKS, checks), (STATES, states)):
        with atomic_path(out / name) as temporary, temporary.open('wb') as file:
            np.save(file, values)


def _compare(out: Path, header: PackHeader, checks: NDArray[Any], indices: NDArray[Any]) -> None:
    stored = _open(out, header)[0]
    for index in indices:
        if zlib.crc32(stored[index].tobytes()) != checks[index]:
            raise ValueError(
                f'{header.files[index]} in {out / PIXELS} differs from what was written; check the disk, '
                'remove the pack and pack again'
            )
