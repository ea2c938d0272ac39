"""Pack folders: in blocks, resumable, verified."""

import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explora_geo._atomic import atomic_path

from .base import TileDataset
from .files import PathLike
from .images import BadTileError
from .packed import (
    CHECKS,
    DONE,
    HEADER,
    OPEN,
    PIXELS,
    REASONS,
    SKIPPED,
    STATES,
    PackHeader,
    is_pack,
    open_pixels,
    read_array,
    read_header,
    read_reasons,
)

#: Tiles per checkpoint: an interrupted run repeats at most these.
BLOCK = 256


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
    _open(out, header)
    states, checks = read_array(out, STATES, header), read_array(out, CHECKS, header)
    reasons = read_reasons(out)
    pixels = open_pixels(out, header, 'r+')
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
    first: NDArray[Any] | None = None
    for index in range(len(dataset)):
        try:
            first = dataset._load(index)
            break
        except BadTileError:
            continue
    if first is None:
        raise ValueError(f'None of the {len(dataset)} images in {dataset.root} can be used.')
    channels, height, width = first.shape
    return PackHeader(
        (len(dataset), channels, height, width),
        str(first.dtype),
        dataset.bands,
        tuple(str(path.relative_to(dataset.root)) for path in dataset.files),
        tuple(dataset.classes),
        None if dataset.labels is None else tuple(dataset.labels),
    )


def _open(out: Path, header: PackHeader) -> None:
    """Start a pack, or check that an existing one has the same tiles."""
    if is_pack(out):
        found = read_header(out)
        different = [k for k, v in asdict(header).items() if v != asdict(found)[k]]
        if different:
            raise ValueError(
                f'{out} holds the pack of other {", ".join(different)}; give another folder, or remove it.'
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    count = header.shape[0]
    _write(out / REASONS, b'{}')
    _write(out / STATES, _npy(np.zeros(count, np.uint8)))
    _write(out / CHECKS, _npy(np.zeros(count, np.uint32)))
    with (out / PIXELS).open('wb') as file:
        file.truncate(header.nbytes)
    _write(out / HEADER, json.dumps(asdict(header)).encode())  # last: it makes the folder a pack


def _compare(out: Path, header: PackHeader, checks: NDArray[Any], indices: NDArray[Any]) -> None:
    stored = open_pixels(out, header)
    for index in indices:
        if zlib.crc32(stored[index].tobytes()) != checks[index]:
            raise ValueError(
                f'{header.files[index]} in {out / PIXELS} differs from what was written; check the disk, '
                'remove the pack and make it again.'
            )


def _write(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
