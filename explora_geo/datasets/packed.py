"""Packs: all tiles of an archive in one memory-mapped file, written in blocks, resumable, verified."""

import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from explora_geo._atomic import atomic_path

from .base import TileDataset, Transforms
from .images import BadTileError
from .remote import PathLike

FORMAT = 'explora_geo.pack'
#: Files of a pack: what it is, its pixels, the state of each tile, its checksum, and why some are skipped.
HEADER, PIXELS, STATES, CHECKS, REASONS = (
    *('pack.json', 'pixels.bin', 'states.npy', 'checks.npy', 'skipped.json'),
)
#: States of a tile in a pack.
OPEN, DONE, SKIPPED = 0, 1, 2
#: Tiles per checkpoint: an interrupted run repeats at most these.
BLOCK = 256


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

    def check(self) -> None:
        """Raise ValueError if the parts do not agree."""
        counts = len(self.shape), self.shape[0], self.shape[1]
        sides = all(type(side) is int and side > 0 for side in self.shape)
        if counts != (4, len(self.files), len(self.bands)) or not sides:
            raise ValueError(f'shape {self.shape} for {len(self.files)} files of {len(self.bands)} bands')
        if np.dtype(self.dtype).kind not in 'iuf':
            raise ValueError(f'pixels of type {self.dtype}')
        labels = self.labels
        if labels is not None and (
            len(labels) != len(self.files) or not set(labels) <= {*range(len(self.classes))}
        ):
            raise ValueError(f'labels that do not fit {len(self.classes)} classes')


class PackedDataset(TileDataset):
    """A pack that :func:`pack` made of a folder, with the folder's samples.

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
        root = Path(root)
        self.header = header = read_header(root)
        self._states = _read_array(root, STATES, header)
        missing = int((self._states == OPEN).sum())
        if missing:
            raise ValueError(
                f'The pack {root} lacks {missing} of {len(self._states)} tiles; run the same explora-geo '
                'pack command again to finish it.'
            )
        self.file_bands = header.bands
        files = [Path(name) for name in header.files]
        super().__init__(root, files, header.labels, header.classes, bands, size, strict, transforms)
        self._reasons = _read_reasons(root)
        self._pixels = _open_pixels(root, header)

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
        self._pixels = _open_pixels(self.root, self.header)


def is_pack(root: PathLike) -> bool:
    """Whether a folder is a pack."""
    return (Path(root) / HEADER).is_file()


def pack(dataset: TileDataset, out: PathLike) -> Iterator[tuple[int, int]]:
    """Write all tiles of a folder into a pack, resuming an interrupted run.

    A tile that cannot be used, or differs in size or type from the first, is skipped and its reason
    kept. What was written is read back and compared before it counts as done.

    Args:
        dataset: Folder; its bands and size are the pack's.
        out: Folder of the pack.

    Yields:
        Tiles that are done, and their number, after each block.

    Raises:
        ValueError: If the folder holds the pack of other tiles, bands or sizes, or a tile does not come
            back from the disk as it was written.
    """
    out = Path(out)
    header = header_of(dataset)
    _start(out, header)
    states, checks = (_read_array(out, name, header) for name in (STATES, CHECKS))
    reasons, pixels = _read_reasons(out), _open_pixels(out, header, 'r+')
    todo = np.flatnonzero(states == OPEN)
    for start in range(0, len(todo), BLOCK):
        block = todo[start : start + BLOCK]
        for index in block:
            try:
                tile = dataset._load(int(index))
                if tile.shape != header.shape[1:] or tile.dtype != header.dtype:
                    raise BadTileError(
                        f'it is {tile.dtype} of shape {tile.shape} instead of {header.dtype} of shape '
                        f'{header.shape[1:]}'
                    )
            except BadTileError as error:
                states[index] = SKIPPED
                reasons[header.files[index]] = str(error)
                continue
            pixels[index] = tile
            checks[index] = zlib.crc32(tile.tobytes())
            states[index] = DONE
        pixels.flush()  # type: ignore[attr-defined]
        _compare(out, header, checks, block[states[block] == DONE])
        _write(out / REASONS, json.dumps(reasons).encode())
        _write(out / CHECKS, _npy(checks))
        _write(out / STATES, _npy(states))  # last: it says that the rest is on the disk
        yield int((states != OPEN).sum()), len(states)
    if not len(todo):
        _compare(out, header, checks, np.flatnonzero(states == DONE))
        yield len(states), len(states)


def header_of(dataset: TileDataset) -> PackHeader:
    """Header for the pack of a folder, from its first usable tile.

    Raises:
        ValueError: If no tile can be used.
    """
    for index in range(len(dataset)):
        try:
            first = dataset._load(index)
        except BadTileError:
            continue
        channels, height, width = first.shape
        return PackHeader(
            (len(dataset), channels, height, width),
            str(first.dtype),
            dataset.bands,
            tuple(str(path.relative_to(dataset.root)) for path in dataset.files),
            dataset.classes,
            None if dataset.labels is None else tuple(dataset.labels),
        )
    raise ValueError(f'None of the {len(dataset)} images in {dataset.root} can be used.')


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
        known: dict[str, Any] = {name: fields[name] for name in PackHeader.__dataclass_fields__}
        known = {k: tuple(v) if isinstance(v, list) else v for k, v in known.items()}
        header = PackHeader(**known)
        header.check()
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'The header {path} is damaged ({error}); pack the archive again.') from error
    if header.format != FORMAT:
        raise ValueError(f'{path} is no header of a pack, its format is {header.format!r}.')
    return header


def _start(out: Path, header: PackHeader) -> None:
    """Start a pack, or check that an existing one has the same tiles."""
    if is_pack(out):
        found = asdict(read_header(out))
        different = [k for k, v in asdict(header).items() if v != found[k]]
        if different:
            raise ValueError(
                f'{out} holds the pack of other {", ".join(different)}; give another folder, or remove it.'
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    _write(out / REASONS, b'{}')
    _write(out / STATES, _npy(np.zeros(header.shape[0], np.uint8)))
    _write(out / CHECKS, _npy(np.zeros(header.shape[0], np.uint32)))
    with (out / PIXELS).open('wb') as file:
        file.truncate(header.nbytes)
    _write(out / HEADER, json.dumps(asdict(header)).encode())  # last: it makes the folder a pack


def _compare(out: Path, header: PackHeader, checks: NDArray[Any], indices: NDArray[Any]) -> None:
    stored = _open_pixels(out, header)
    for index in indices:
        if zlib.crc32(stored[index].tobytes()) != checks[index]:
            raise ValueError(
                f'{header.files[index]} in {out / PIXELS} differs from what was written; check the disk, '
                'remove the pack and make it again.'
            )


def _open_pixels(root: Path, header: PackHeader, mode: Literal['r', 'r+'] = 'r') -> NDArray[Any]:
    """Memory-map the pixels of a pack, shape (N, C, H, W)."""
    path = root / PIXELS
    size = path.stat().st_size
    if size != header.nbytes:
        raise ValueError(
            f'{path} has {size:,} bytes instead of {header.nbytes:,}; remove the pack and make it again.'
        )
    return np.memmap(path, header.dtype, mode, shape=header.shape)


def _read_array(root: Path, name: str, header: PackHeader) -> NDArray[Any]:
    """Read an array with one value per tile of a pack, shape (N,)."""
    path = root / name
    try:
        found = np.load(path)
    except (ValueError, EOFError) as error:
        raise _damaged(path, error) from error
    if not isinstance(found, np.ndarray) or found.shape != header.shape[:1]:
        raise _damaged(path, f'shape {np.shape(found)} for {header.shape[0]} tiles')
    return found


def _read_reasons(root: Path) -> dict[str, str]:
    """Read why tiles of a pack were skipped, by file."""
    path = root / REASONS
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise _damaged(path, error) from error
    if not isinstance(found, dict):
        raise _damaged(path, 'no mapping')
    return found


def _damaged(path: Path, why: object) -> ValueError:
    return ValueError(f'{path} is damaged ({why}); remove the pack and make it again.')


def _write(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
