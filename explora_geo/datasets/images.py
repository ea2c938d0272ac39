"""Read one image file of any type and band count, without hiding damage."""

import errno
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile
from rasterio.enums import ColorInterp
from rasterio.errors import NodataShadowWarning, NotGeoreferencedWarning, RasterioError
from torch.nn import functional as F

from explora_geo._compat import CPLE_BaseError, CPLE_OutOfMemoryError
from explora_geo.bands import RGB, canonical
from explora_geo.datasets.files import PLAIN_SUFFIXES, evenly_spaced
from explora_geo.datasets.remote import PathLike

#: Errors of readers on damaged bytes: almost any built-in error in Pillow; GDAL and zlib have their own.
DAMAGE = (
    *(ArithmeticError, EOFError, LookupError, OSError, SyntaxError, TypeError, ValueError, struct.error),
    *(Image.DecompressionBombError, CPLE_BaseError, RasterioError, zlib.error),
)
#: System errors, which say nothing about the file.
MACHINE_FAILURES = frozenset({errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE})


class BadTileError(ValueError):
    """Error for an image file that must not be used; the message says why."""


@dataclass(frozen=True)
class Header:
    """Header of an image."""

    path: Path | str  # path, URL or GDAL name
    dtype: str  # NumPy name of the pixel type
    descriptions: tuple[str | None, ...]  # band names stored in the file, None where missing
    height: int
    width: int
    colors: tuple[str | None, ...] = ()  # of a raster's bands by tag; empty unless each occurs once
    crs: str | None = None  # coordinate reference system
    nodata: float | None = None  # value of pixels without data
    whole: bool = False  # always read whole: plain images and palette rasters

    @property
    def count(self) -> int:
        """Number of bands."""
        return len(self.descriptions)

    @property
    def side(self) -> int:
        """The shorter side, pixels."""
        return min(self.height, self.width)

    def check_count(self, names: Sequence[str]) -> None:
        """Raise BadTileError unless there is one name for each band."""
        if self.count != len(names):
            raise BadTileError(f'has {self.count} bands, expected {len(names)}: {tuple(names)}')


def read_header(path: PathLike, names: Sequence[str] | None = None) -> Header:
    """Read the bands, pixel type, size and location of the image that :func:`read_image` returns.

    Args:
        path: Image file, as `Path`, or a name that GDAL opens, as `str`.
        names: Names of the expected bands, if known.

    Raises:
        BadTileError: If the file is not a readable image.
    """
    with _open(path, names, any_size=True) as (header, _):
        return header


@contextmanager
def _open(
    path: PathLike, names: Sequence[str] | None, any_size: bool = False
) -> Iterator[tuple[Header, Callable[[Sequence[int]], NDArray[Any]]]]:
    """Yield the header of an image and a function that reads bands at zero-based positions, (C, H, W)."""
    place = path if isinstance(path, str) else Path(path)
    if _is_plain(place):
        with _pillow(place) as image:
            # One pixel is enough to learn the resulting bands and type.
            pixels = _plain_bands(Image.new(image.mode, (1, 1)), names)
            size = image.height, image.width
            header = Header(place, pixels.dtype.name, (None,) * len(pixels), *size, whole=True)
            yield header, lambda positions: _plain_bands(image, names)[list(positions)]
        return
    with open_raster(place, any_size) as source:
        if not source.count:
            raise BadTileError('has no bands of its own, only subdatasets: specify one of them')
        size = source.height, source.width
        crs = None if source.crs is None else source.crs.to_string()
        if source.colorinterp[0] == ColorInterp.palette:
            header = Header(place, 'uint8', (None,) * 3, *size, (), crs, source.nodata, whole=True)
            yield header, lambda positions: _paint(source.read(1), source.colormap(1))[list(positions)]
            return
        descriptions = tuple((text or '').strip() or None for text in source.descriptions)
        colors = tuple(tag.name if tag.name in RGB else None for tag in source.colorinterp)
        if sorted(filter(None, colors)) != sorted(RGB):
            colors = ()
        header = Header(place, source.dtypes[0], descriptions, *size, colors, crs, source.nodata)
        yield (header, lambda positions: fill_nodata(source.read([i + 1 for i in positions]), source.nodata))


def depth(dtype: str) -> str:
    """Return the kind of pixel values, such as `16-bit` or `float`; kinds must not be mixed."""
    kind = np.dtype(dtype)
    return 'float' if kind.kind == 'f' else f'{8 * kind.itemsize}-bit'


def read_image(
    path: Path,
    names: Sequence[str],
    positions: Sequence[int],
    dtype: str | None = None,
    by_name: bool = False,
) -> NDArray[Any]:
    """Read chosen bands of an image in the file's own type and units, shape (C, H, W).

    A plain gray image is repeated to three bands if red, green and blue are expected, because JPEG
    writers store colorless pictures as gray. Nodata pixels take the mean of the valid ones.

    Args:
        path: Image file.
        names: Names of all bands the file should have, in file order.
        positions: Zero-based positions of the bands to return.
        dtype: Pixel type of the other images, if known.
        by_name: Whether to find bands by the names stored in the file, if any.

    Raises:
        BadTileError: If the file is damaged, has other bands or another kind of pixels, holds only nodata,
            or has NaN or infinite pixels.
    """
    with _open(path, names) as (header, read):
        header.check_count(names)
        pixels = read(_own_positions(header.descriptions, names, positions) if by_name else positions)
    if np.iscomplexobj(pixels):
        raise BadTileError('has complex pixels')
    if pixels.dtype.kind == 'f' and not np.isfinite(pixels).all():
        raise BadTileError('has NaN or infinite pixels')
    if dtype is not None and depth(dtype) != depth(pixels.dtype.name):
        raise BadTileError(f'has {pixels.dtype.name} pixels, expected {dtype}')
    return np.ascontiguousarray(pixels)


def _own_positions(
    descriptions: Sequence[str | None], names: Sequence[str], positions: Sequence[int]
) -> Sequence[int]:
    """Return positions by the band names in the file, or the given ones if it does not name them all."""
    stated, wanted = [canonical(d) for d in descriptions if d], [canonical(n) for n in names]
    if len(stated) < len(wanted) or stated == wanted:
        return positions
    if sorted(stated) != sorted(wanted):
        raise BadTileError(
            f'has the bands {tuple(descriptions)}, expected {tuple(names)}; if only the names differ, set '
            'file_bands'
        )
    return [stated.index(wanted[i]) for i in positions]


def without_data(pixels: NDArray[Any], nodata: float) -> NDArray[np.bool_]:
    """Mark the nodata pixels of an image, shape (C, H, W): NaN, or else *nodata* in every band.

    A pixel that is dark in only one band is not a hole.
    """
    if np.isnan(nodata):
        return np.isnan(pixels)
    return np.broadcast_to((pixels == nodata).all(0), pixels.shape)


def fill_nodata(pixels: NDArray[Any], nodata: float | None) -> NDArray[Any]:
    """Fill nodata pixels with the mean of their band's valid pixels; raise BadTileError if it has none."""
    if nodata is None or not (empty := without_data(pixels, nodata)).any():
        return pixels
    if empty.all((1, 2)).any():
        raise BadTileError(f'contains only nodata ({nodata:g})')
    mean = np.ma.masked_array(pixels, empty).mean((1, 2), np.float64, keepdims=True)
    return np.where(empty, np.rint(mean) if pixels.dtype.kind in 'iu' else mean, pixels).astype(pixels.dtype)


def read_headers(
    files: Sequence[PathLike], most: int, where: object, names: Sequence[str] | None = None
) -> tuple[list[Header], list[str]]:
    """Read the headers of at most *most* evenly spaced files; list unreadable ones, `<path>: <reason>`.

    Raises:
        ValueError: If none can be read; the message names *where*.
    """
    found, skipped = list[Header](), list[str]()
    for index in evenly_spaced(len(files), most):
        try:
            found.append(read_header(files[index], names))
        except BadTileError as error:
            skipped.append(f'{files[index]}: {error}')
    if not found:
        raise ValueError(
            f'none of the {len(skipped)} files checked in {where} can be read as an image (first: '
            f'{skipped[0]}); use complete image files: a folder of tiles, a pack, scenes or a list'
        )
    return found, skipped


def resize(
    pixels: NDArray[Any], size: int | None, nearest: bool = False, crop_pct: float = 1.0
) -> NDArray[Any]:
    """Resize the shorter side and crop the center square, as in appendix D.1 of the paper.

    Args:
        pixels: Image, shape (C, H, W).
        size: Side of the result, pixels, in the same pixel type; None leaves the image unchanged.
        nearest: Whether to interpolate by nearest neighbor, as for masks, instead of bicubically.
        crop_pct: Share of the resized shorter side to keep.
    """
    if size is None:
        return pixels
    whole = int(size / crop_pct)
    scale = whole / min(pixels.shape[1:])
    if scale != 1:
        shape = [max(whole, round(side * scale)) for side in pixels.shape[1:]]
        how: dict[str, Any] = {'mode': 'nearest-exact'} if nearest else {'mode': 'bicubic', 'antialias': True}
        tensor = torch.from_numpy(pixels.astype(np.float64 if nearest else np.float32))
        resized = F.interpolate(tensor[None], shape, **how)[0].double().numpy()
        if pixels.dtype.kind in 'iu':
            # Some bicubic weights are negative, so sharp edges overshoot the range of the type.
            limits = np.iinfo(pixels.dtype)
            resized = np.clip(np.rint(resized), limits.min, limits.max)
        pixels = resized.astype(pixels.dtype)
    top, left = ((side - whole) // 2 + (whole - size) // 2 for side in pixels.shape[1:])
    return np.ascontiguousarray(pixels[:, top : top + size, left : left + size])


def _is_plain(path: Path | str) -> bool:
    """Return whether Pillow reads a file; it cuts 16-bit color to 8 bits and knows few kinds of TIFF."""
    if isinstance(path, str) or path.suffix.lower() not in PLAIN_SUFFIXES:
        return False
    with readable(path), path.open('rb') as file:
        start = file.read(25)
    # Judge by content, as names may be wrong. Byte 24 of a PNG is its bit depth.
    deep = start.startswith(b'\x89PNG') and start[24:] == b'\x10'
    return not deep and not start.startswith((b'II*\0', b'MM\0*', b'II+\0', b'MM\0+'))


@contextmanager
def readable(path: PathLike, *damage: type[Exception]) -> Iterator[None]:
    """Turn a reader's errors on damaged bytes, and *damage*, into BadTileError.

    System errors pass as OSError: out of memory, too many open files, a failing disk or network drive.
    """
    try:
        yield
    except BadTileError:
        raise
    except (*DAMAGE, *damage) as error:
        raise_machine_failure(error, path)
        reason = str(error).split('\n')[0] or type(error).__name__
        raise BadTileError(f'cannot be read ({reason})') from error


def raise_machine_failure(error: Exception, path: PathLike | None = None) -> None:
    """Raise OSError if the system caused the error, not the file.

    GDAL keeps no error number, so a local file is read again to find out.
    """
    cause: BaseException | None = error
    while cause is not None:
        if getattr(cause, 'errno', None) in MACHINE_FAILURES:
            raise error
        if isinstance(cause, CPLE_OutOfMemoryError):
            raise OSError(errno.ENOMEM, f'{os.strerror(errno.ENOMEM)} ({cause})', path) from error
        for number in MACHINE_FAILURES:
            if os.strerror(number) in str(cause):
                raise OSError(number, os.strerror(number), path) from error
        cause = cause.__cause__
    if path is None:
        return
    try:
        with open(path, 'rb') as file:
            while file.read(2**20):
                pass
    except OSError as again:
        if again.errno in MACHINE_FAILURES:
            raise


@contextmanager
def _pillow(path: Path | str) -> Iterator[Image.Image]:
    # Other libraries switch this on for the whole process, which would let damaged tiles pass.
    tolerant = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with readable(path), Image.open(path) as image:
            yield image
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = tolerant


@contextmanager
def open_raster(path: PathLike, any_size: bool = False) -> Iterator[rasterio.DatasetReader]:
    """Open a raster no larger than a tile may be; errors in the body become `BadTileError`."""
    with readable(path), warnings.catch_warnings():
        # Tiles need no georeference, and many four-band files tag near infrared as alpha.
        for category in (NotGeoreferencedWarning, NodataShadowWarning):
            warnings.simplefilter('ignore', category)
        with rasterio.open(path) as source:
            # Apply Pillow's limit: a small file may unpack to any size.
            limit = 2 * (Image.MAX_IMAGE_PIXELS or np.inf)
            if source.width * source.height > limit and not any_size:
                raise BadTileError(
                    f'has {source.width} x {source.height} pixels, the limit for a tile is {limit:,.0f}'
                )
            yield source


def _plain_bands(image: Image.Image, names: Sequence[str] | None) -> NDArray[Any]:
    """Turn a Pillow image of any mode into bands, shape (C, H, W)."""
    if image.mode in {'1', 'LA', 'La'}:
        image = image.convert('L')
    # A fourth channel is transparency unless four bands are named.
    keep_alpha = image.mode == 'RGBA' and names is not None and len(names) == 4
    if not (keep_alpha or image.mode in {'L', 'RGB', 'F'} or image.mode.startswith('I')):
        image = image.convert('RGB')
    pixels = np.array(image)
    if image.mode == 'L' and names is not None and tuple(names) == RGB:
        pixels = np.repeat(pixels[..., None], 3, axis=-1)
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


def _paint(indices: NDArray[Any], colors: dict[int, tuple[int, ...]]) -> NDArray[np.uint8]:
    table = [colors.get(i, (0, 0, 0))[:3] for i in range(int(indices.max()) + 1)]
    return np.moveaxis(np.array(table, np.uint8)[indices], -1, 0)
