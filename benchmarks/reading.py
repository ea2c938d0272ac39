"""How many 13-band tiles and 224 px JPEG images one core reads per second, and from what form fastest."""

import importlib
import io
import json
import platform
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
import torch
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from rich.console import Console

from explora_geo._atomic import atomic_path
from explora_geo.datasets import FolderDataset, PackedDataset
from explora_geo.datasets.eurosat import MS_BANDS
from explora_geo.datasets.packing import pack

# GDAL without the search for files beside each tile.
_LEAN = {'GDAL_DISABLE_READDIR_ON_OPEN': 'EMPTY_DIR', 'GDAL_PAM_ENABLED': 'NO'}
Reader = Callable[[Path], Any]
Items = Generator[Any, None, None]
Way = tuple[str, Items, float]


class Row(NamedTuple):
    """One way of reading.

    Attributes:
        name: What is read with what.
        per_second: Tiles per CPU second, the median of three runs.
        megabytes: Size on disk of this form of all tiles, in MB.
    """

    name: str
    per_second: float
    megabytes: float


def run_reading(out: Path, tiles: Path, images: Path, seconds: float = 3.0) -> Path:
    """Measure, and write `reading.json` and `reading.md`.

    Times are CPU times of one thread with all files in the page cache, so that they say what decoding
    costs and hardly depend on what else the machine does. Ways whose library is missing are left out.

    Args:
        out: Folder of the results.
        tiles: Folder of 13-band GeoTIFF tiles.
        images: Folder of RGB images, from which JPEG files of 224 px are made.
        seconds: CPU seconds for each way.

    Returns:
        The Markdown file.
    """
    torch.set_num_threads(1)
    warnings.simplefilter('ignore', NotGeoreferencedWarning)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        jpegs = _make_jpegs(images, work / 'jpeg')
        tables = {
            f'13-band GeoTIFF tiles of {tiles.name}': _measure_all(tile_ways(tiles, work), seconds),
            'JPEG images of 224 px': _measure_all(image_ways(jpegs, work), seconds),
        }
    content = {'machine': platform.processor() or platform.machine(), 'tables': tables}
    text = _markdown({k: [Row(*row) for row in rows] for k, rows in tables.items()})
    for name, body in (('reading.json', json.dumps(content, indent=1)), ('reading.md', text)):
        with atomic_path(out / name) as temporary:
            temporary.write_text(body)
    Console().print(text, markup=False)
    return out / 'reading.md'


def tile_ways(root: Path, work: Path) -> Iterator[Way]:
    """Ways to read 13-band tiles: name, endless iterator of pixels, MB on disk."""
    dataset = FolderDataset(root, file_bands=MS_BANDS)
    files = dataset.files
    size = _size(files)
    yield 'FolderDataset', _samples(dataset), size
    yield 'rasterio, a new environment per tile', _each(files, _rasterio), size
    yield 'rasterio, one environment', _each(files, _rasterio, rasterio.Env()), size
    yield 'rasterio, one environment, no search beside', _each(files, _rasterio, rasterio.Env(**_LEAN)), size
    if (tifffile := _optional('tifffile')) is not None:
        yield 'tifffile', _each(files, tifffile.imread), size
    arrays = [dataset._load(i) for i in range(len(dataset))]
    shard = work / 'tiles.tar'
    _write_tar(shard, ((f'{i:06d}.npy', _npy(a)) for i, a in enumerate(arrays)))
    yield from _shards(shard, 'NumPy arrays', lambda b: np.load(io.BytesIO(b)), 'npy')
    yield from _packs(dataset, work / 'tile_pack')


def image_ways(root: Path, work: Path) -> Iterator[Way]:
    """Ways to read JPEG images: name, endless iterator of pixels, MB on disk."""
    dataset = FolderDataset(root)
    files = dataset.files
    size = _size(files)
    yield 'FolderDataset', _samples(dataset), size
    yield 'Pillow', _each(files, lambda path: np.asarray(Image.open(path).convert('RGB'))), size
    tv: Any = importlib.import_module('torchvision.io')
    yield 'torchvision', _each(files, lambda path: tv.decode_jpeg(tv.read_file(str(path)))), size
    if (simplejpeg := _optional('simplejpeg')) is not None:
        decode = simplejpeg.decode_jpeg
        yield 'simplejpeg (libjpeg-turbo)', _each(files, lambda path: decode(path.read_bytes())), size
    shard = work / 'images.tar'
    _write_tar(shard, ((f'{i:06d}.jpg', path.read_bytes()) for i, path in enumerate(files)))
    yield from _shards(shard, 'JPEG files', lambda b: np.asarray(Image.open(io.BytesIO(b))), 'jpg')
    yield from _packs(dataset, work / 'image_pack')


def _measure_all(ways: Iterator[Way], seconds: float) -> list[Row]:
    return [Row(name, round(_speed(items, seconds), 1), round(size, 2)) for name, items, size in ways]


def _speed(items: Items, seconds: float) -> float:
    """Items per CPU second: the median of three runs after a first look at every file."""
    for _ in range(200):
        next(items)
    speeds: list[float] = []
    for _ in range(3):
        start, count = time.process_time(), 0
        while (spent := time.process_time() - start) < seconds / 3:
            next(items)
            count += 1
        speeds.append(count / spent)
    items.close()  # leaves the environment that it reads in
    return float(np.median(speeds))


def _samples(dataset: Any) -> Items:
    """Samples in a random order, as training asks for them."""
    order = np.random.default_rng(0).permutation(len(dataset))
    return (dataset[int(i)] for i in cycle(order))


def _each(files: list[Path], read: Reader, environment: Any = None) -> Items:
    with environment or nullcontext():
        for path in cycle(files):
            yield read(path)


def _rasterio(path: Path) -> Any:
    with rasterio.open(path) as source:
        return source.read()


def _shards(shard: Path, kind: str, decode: Callable[[bytes], Any], key: str) -> Iterator[Way]:
    size = shard.stat().st_size / 1e6

    def plain() -> Items:
        while True:
            with tarfile.open(shard) as archive:
                for member in archive:
                    yield decode(archive.extractfile(member).read())  # type: ignore[union-attr]

    yield f'tar shard of {kind}, tarfile', plain(), size
    if (webdataset := _optional('webdataset')) is not None:

        def streamed() -> Items:
            while True:
                for sample in webdataset.WebDataset(str(shard), shardshuffle=False):
                    yield decode(sample[key])

        yield f'tar shard of {kind}, WebDataset', streamed(), size


def _packs(dataset: FolderDataset, folder: Path) -> Iterator[Way]:
    for _ in pack(dataset, folder):
        pass
    packed = PackedDataset(folder)
    size = _size(list(folder.iterdir()))
    pixels = packed._pixels
    order = np.random.default_rng(0).permutation(len(packed))
    yield 'memory-mapped pixels, copied', (np.array(pixels[i]) for i in cycle(order)), size
    yield 'PackedDataset', _samples(packed), size


def _make_jpegs(images: Path, folder: Path, count: int = 500) -> Path:
    folder.mkdir(parents=True)
    files = sorted(images.rglob('*.jpg'))
    for i, path in enumerate(files[:: max(1, len(files) // count)][:count]):
        Image.open(path).resize((224, 224), Image.Resampling.BICUBIC).save(
            folder / f'{i:05d}.jpg', quality=90
        )
    return folder


def _write_tar(path: Path, members: Iterator[tuple[str, bytes]]) -> None:
    with tarfile.open(path, 'w') as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def _npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _size(files: list[Path]) -> float:
    return sum(path.stat().st_size for path in files) / 1e6


def _optional(name: str) -> Any:
    """A library that only this comparison uses, or None."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _markdown(tables: dict[str, list[Row]]) -> str:
    lines = [
        '# Reading speed',
        '',
        'Per second of CPU time of one thread, all files in the page cache, the median of three runs. Other '
        'work on the machine moves single rows by up to a third.',
    ]
    for title, rows in tables.items():
        used = rows[0].per_second
        lines += ['', f'## {title}', '', '| read with | per second | against FolderDataset | MB on disk |']
        lines.append('|---|---|---|---|')
        for row in rows:
            share = row.per_second / used
            lines.append(f'| {row.name} | {row.per_second:,.0f} | {share:.1f}x | {row.megabytes:.1f} |')
    return '\n'.join(lines) + '\n'
