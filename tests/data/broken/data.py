"""Broken and unusual images, made when a test asks for them: every way in which an archive goes wrong."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from PIL import Image

SIZE = 64


def pixels(dtype: str = 'uint8', bands: int = 3) -> np.ndarray:
    """Random pixels, shape (bands, SIZE, SIZE)."""
    return np.random.default_rng(0).integers(1, 255, (bands, SIZE, SIZE)).astype(dtype)


def plain(path: Path, mode: str = 'RGB', **kwargs: Any) -> Path:
    """A sound image of Pillow's."""
    Image.fromarray(pixels().transpose(1, 2, 0)).convert(mode).save(path, **kwargs)
    return path


def raster(path: Path, values: np.ndarray | None = None, **kwargs: Any) -> Path:
    """A sound GeoTIFF, compressed so that damage shows."""
    values = pixels() if values is None else values
    profile = {'count': len(values), 'height': values.shape[1], 'width': values.shape[2]}
    profile |= {'dtype': values.dtype, 'compress': 'deflate', 'photometric': 'minisblack', **kwargs}
    with rasterio.open(path, 'w', driver='GTiff', **profile) as target:
        target.write(values)
    return path


def cut(path: Path) -> Path:
    """Keep two thirds of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    return path


def flip(path: Path, step: int = 97) -> Path:
    """Turn over bits all along a file, after its signature."""
    content = bytearray(path.read_bytes())
    for place in range(20, len(content), step):
        content[place] ^= 0x55
    path.write_bytes(content)
    return path


def bomb_png(path: Path, side: int = 60_000) -> Path:
    """A file of a few bytes whose header says that it is enormous."""
    header = struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
    chunks = [(b'IHDR', header), (b'IDAT', zlib.compress(b'\0' * 1000)), (b'IEND', b'')]
    body = [struct.pack('>I', len(d)) + t + d + struct.pack('>I', zlib.crc32(t + d)) for t, d in chunks]
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + b''.join(body))
    return path


def bomb_tif(path: Path, side: int = 60_000) -> Path:
    """The same as a sparse GeoTIFF."""
    profile = {'count': 3, 'height': side, 'width': side, 'dtype': 'uint8', 'sparse_ok': True, 'tiled': True}
    with rasterio.open(path, 'w', driver='GTiff', compress='deflate', **profile):
        return path


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _link(path: Path, target: str) -> Path:
    path.symlink_to(target)
    return path


def _odd(value: float, dtype: str = 'float32') -> np.ndarray:
    values = pixels(dtype)
    values[1, 5, 5] = value
    return values


#: Files that no data set may return as an image of three bands of 8 bits: name, maker, and why.
BROKEN: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    'jpeg cut short': ('z.jpg', lambda p: cut(plain(p)), 'cannot be read'),
    'png cut short': ('z.png', lambda p: cut(plain(p)), 'cannot be read'),
    'tiff cut short': ('z.tif', lambda p: cut(raster(p)), 'cannot be read'),
    'png of flipped bits': ('z.png', lambda p: flip(plain(p)), 'cannot be read'),
    'tiff of flipped bits': ('z.tif', lambda p: flip(raster(p)), 'cannot be read|bands, expected'),
    'jpeg of flipped header': ('z.jpg', lambda p: flip(plain(p), 3), 'cannot be read'),
    'empty jpeg': ('z.jpg', lambda p: _written(p, b''), 'cannot be read'),
    'empty tiff': ('z.tif', lambda p: _written(p, b''), 'cannot be read'),
    'text as jpeg': ('z.jpg', lambda p: _written(p, b'no image'), 'cannot be read'),
    'text as tiff': ('z.tif', lambda p: _written(p, b'<html>'), 'cannot be read'),
    'enormous png': ('z.png', bomb_png, 'exceeds limit'),
    'enormous tiff': ('z.tif', bomb_tif, 'has 60000 x 60000 pixels, the limit for a tile is'),
    'nan': ('z.tif', lambda p: raster(p, _odd(np.nan)), 'NaN or infinite'),
    'infinite': ('z.tif', lambda p: raster(p, _odd(np.inf)), 'NaN or infinite'),
    'nodata only': ('z.tif', lambda p: raster(p, 0 * pixels(), nodata=0), 'nodata'),
    '16 bits': ('z.tif', lambda p: raster(p, pixels('uint16')), 'uint16 pixels, expected uint8'),
    '16 bits in a tiff called jpeg': (
        'z.jpg',
        lambda p: raster(p.with_suffix('.tif'), pixels('uint16')).rename(p),
        'uint16 pixels, expected uint8',
    ),
    'two bands': ('z.tif', lambda p: raster(p, pixels(bands=2)), '2 bands, expected'),
    'complex': ('z.tif', lambda p: raster(p, pixels('complex64')), 'complex'),
    'link to itself': ('z.jpg', lambda p: _link(p, p.name), 'cannot be read'),
    'link to nothing': ('z.tif', lambda p: _link(p, 'nowhere.tif'), 'cannot be read'),
}


def _palette(path: Path) -> Path:
    profile = {'count': 1, 'height': SIZE, 'width': SIZE, 'dtype': 'uint8'}
    with rasterio.open(path, 'w', driver='GTiff', **profile) as target:
        target.write_colormap(1, {i: (i, 255 - i, i, 255) for i in range(256)})
        target.write(pixels(bands=1))
    return path


#: Files that look odd and are read: name and maker.
ODD: dict[str, tuple[str, Callable[[Path], Path]]] = {
    'cmyk': ('z.jpg', lambda p: plain(p, 'CMYK')),
    'palette': ('z.png', lambda p: plain(p, 'P')),
    'palette tiff': ('z.tif', _palette),
    'png called jpeg': ('z.jpg', lambda p: plain(p, format='PNG')),
    'jpeg called tiff': ('z.tif', lambda p: plain(p, format='JPEG')),
    'tiff called jpeg': ('z.jpg', lambda p: raster(p.with_suffix('.tif')).rename(p)),
    'capital ending': ('Z.JPG', plain),
    'spaces and other alphabets': ('zwei Bäume 森林 №1.jpg', plain),
    'no place on Earth': ('z.tif', raster),
}


def add(folder: Path, kind: str) -> Path:
    """Put one of these files into a folder."""
    name, make, *_ = BROKEN[kind] if kind in BROKEN else ODD[kind]
    return make(folder / name)
