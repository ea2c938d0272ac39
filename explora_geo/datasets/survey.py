"""Survey an archive by a sample of its files."""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.errors import NodataShadowWarning, NotGeoreferencedWarning
from rasterio.windows import Window

from .files import (
    PLAIN_SUFFIXES,
    PathLike,
    evenly_spaced,
    expand,
    is_list,
    is_pattern,
    is_remote,
    locate_images,
    read_list,
)
from .images import BadTileError, depth, read_header, read_image, readable, without_data

#: Files opened at most, remote ones, and files of which pixels are read.
OPENED, OPENED_REMOTE, DECODED = 200, 8, 32
#: Side of the windows of which pixels are read.
WINDOW = 512
#: Centers of these windows, as shares of height and width.
PLACES = ((0.5, 0.5), (0.3, 0.3), (0.7, 0.7), (0.3, 0.7), (0.7, 0.3))
#: Largest share of files unlike the others, which are skipped.
ODD = 0.05

_COLORS = {ColorInterp.red: 'red', ColorInterp.green: 'green', ColorInterp.blue: 'blue'}


class FileFacts(NamedTuple):
    """Facts from the header of an image.

    Attributes:
        path: Path, URL or GDAL name.
        names: Names of the bands by description or color interpretation, None where there is none.
        stated: Whether every band has a description of its own.
        dtype: NumPy name of the pixel type.
        height: Rows.
        width: Columns.
        crs: Coordinate reference system, or None.
        nodata: Value of pixels without data, or None.
        plain: Whether Pillow reads it.
    """

    path: str
    names: tuple[str | None, ...]
    stated: bool
    dtype: str
    height: int
    width: int
    crs: str | None = None
    nodata: float | None = None
    plain: bool = False

    @property
    def grey(self) -> bool:
        """Whether it may be a colorless picture of a colored set."""
        return self.plain and len(self.names) == 1 and self.dtype == 'uint8'


class Values(NamedTuple):
    """Pixel values of a sample.

    Attributes:
        low: Smallest value of pixels with data.
        high: Largest value.
        nodata: Share of pixels without data, in [0, 1].
    """

    low: float
    high: float
    nodata: float


@dataclass(frozen=True)
class Survey:
    """Headers of a sample of files.

    Attributes:
        source: The archive as it was given, for messages.
        root: Folder that holds the files, None for single files, remote ones and sequences.
        files: All files.
        found: Headers of those looked at that are alike.
        skipped: Others that were looked at, `<path>: <reason>`.
    """

    source: str
    root: Path | None
    files: list[str]
    found: list[FileFacts]
    skipped: list[str]

    @property
    def usual(self) -> FileFacts:
        """A representative header."""
        return self.found[0]

    @property
    def size(self) -> tuple[int, int]:
        """Median height and width, pixels."""
        return int(np.median([f.height for f in self.found])), int(np.median([f.width for f in self.found]))

    @property
    def crs(self) -> str | None:
        """Coordinate reference system of most files, and how many others there are."""
        (usual, _), *others = Counter(f.crs for f in self.found).most_common()
        return f'{usual} and {len(others)} others' if usual and others else usual


def survey(archive: PathLike | Sequence[PathLike]) -> Survey:
    """Read the headers of at most 200 evenly spaced files, 8 if they are remote.

    Args:
        archive: Folder, file, pattern, list of files (see :func:`~.files.read_list`), anything that GDAL
            opens, or a sequence of these.

    Returns:
        What they say.

    Raises:
        FileNotFoundError: If there is no such archive, or it is empty.
        ValueError: If none of the files can be read, or more than one in twenty is unlike the others.
    """
    if isinstance(archive, str | os.PathLike):
        source = os.fspath(archive)
        root, files = _find(archive)
    else:
        source = ', '.join(str(one) for one in archive)
        root, files = None, [file for one in archive for file in _find(one)[1]]
    if not files:
        raise FileNotFoundError(
            f'{source or "The archive"} holds no image (looked for JPEG, PNG, GeoTIFF and the like, also in '
            'sub-folders); check the path.'
        )
    found: list[FileFacts] = []
    skipped: list[str] = []
    for index in evenly_spaced(len(files), OPENED_REMOTE if any(map(is_remote, files)) else OPENED):
        try:
            found.append(_read_facts(files[index]))
        except BadTileError as error:
            skipped.append(f'{files[index]}: {error}')
    if not found:
        raise ValueError(
            f'None of the {len(skipped)} files looked at in {source} can be read as an image, first '
            f'{skipped[0]}; give a folder of tiles, a pack, scenes or a list of files.'
        )
    found, odd = _alike(found, source)
    return Survey(source, root, files, found, skipped + odd)


def sample_values(survey: Survey, names: Sequence[str], positions: Sequence[int]) -> tuple[Values, list[str]]:
    """Read windows of 512 px of at most 32 files; several of each if there are few.

    Args:
        survey: Headers of the files.
        names: Names of all bands in file order.
        positions: Zero-based positions of the bands to read.

    Returns:
        The values, and which files are damaged, `<path>: <reason>`.

    Raises:
        ValueError: If no pixel holds data.
    """
    low, high, empty, pixels = np.inf, -np.inf, 0, 0
    skipped = []
    # Rotated scenes are empty at some of these.
    places = PLACES[: max(1, DECODED // len(survey.found))]
    for index in evenly_spaced(len(survey.found), DECODED):
        facts = survey.found[index]
        try:
            data, without = _read_pixels(facts, names, positions, places)
        except BadTileError as error:
            skipped.append(f'{facts.path}: {error}')
            continue
        pixels, empty = pixels + without.size, empty + int(without.sum())
        if not without.all():
            valid = data[~without]
            low, high = min(low, float(valid.min())), max(high, float(valid.max()))
    if low > high:
        reason = f'first {skipped[0]}' if skipped else 'they hold nodata only'
        raise ValueError(f'No pixel of the files looked at in {survey.source} can be used, {reason}.')
    return Values(low, high, empty / pixels), skipped


def _find(archive: PathLike) -> tuple[Path | None, list[str]]:
    """The folder of an archive's files, if they may be tiles, and the files."""
    if is_remote(archive):
        return None, [os.fspath(archive)]
    if is_list(archive):
        names = read_list(archive)
        if any(map(is_remote, names)):
            return None, names
    elif is_pattern(archive):
        expand(archive)  # says that nothing matches
    elif Path(archive).is_file():
        return None, [os.fspath(archive)]
    elif not Path(archive).is_dir():
        raise FileNotFoundError(f'There is no archive {archive}; check the path.')
    root, files = locate_images(archive)
    return root, [str(path) for path in files]


def _read_facts(path: str) -> FileFacts:
    if not is_remote(path) and Path(path).suffix.lower() in PLAIN_SUFFIXES:
        header = read_header(Path(path))
        size = header.height, header.width
        return FileFacts(path, header.descriptions, False, header.dtype, *size, plain=True)
    with readable(path), warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        with rasterio.open(path) as source:
            shape = source.shape
            if not source.count:
                raise BadTileError('it has no bands of its own, only sub-data sets: name one of these')
            crs = None if source.crs is None else source.crs.to_string()
            if crs is not None and len(crs) > 40:  # well-known text of a whole screen
                crs = 'a CRS of its own'
            place: dict[str, Any] = {'crs': crs, 'nodata': source.nodata}
            if source.colorinterp[0] == ColorInterp.palette:
                return FileFacts(path, (None,) * 3, False, 'uint8', *shape, **place)
            names = [(text or '').strip() for text in source.descriptions]
            given = [name.lower() for name in names if name]
            if len(set(given)) < len(given):  # the same text for several bands names none
                names = [''] * source.count
            stated = all(names)
            colors = [_COLORS.get(tag) for tag in source.colorinterp]
            if sorted(filter(None, colors)) == ['blue', 'green', 'red']:
                names = [name or color or '' for name, color in zip(names, colors, strict=True)]
            return FileFacts(path, tuple(n or None for n in names), stated, source.dtypes[0], *shape, **place)


def _alike(found: list[FileFacts], source: str) -> tuple[list[FileFacts], list[str]]:
    """Split files into those like most and the others, `<path>: <reason>`."""
    skipped: list[str] = []
    kinds: list[tuple[Callable[[FileFacts], Hashable], str]] = [
        (lambda f: len(f.names), 'bands'),
        (lambda f: depth(f.dtype), 'pixels'),
    ]
    for key, what in kinds:
        counts = Counter(key(f) for f in found if not f.grey)
        if not counts:
            continue
        usual = counts.most_common(1)[0][0]
        # Colorless pictures among colored ones are read as such.
        odd = [f for f in found if key(f) != usual and not (f.grey and usual in (3, '8-bit'))]
        if len(odd) > ODD * len(found):
            one = next(f for f in found if key(f) == usual)
            first, second = (f'{key(f)} {what} ({f.path})' for f in (one, odd[0]))
            raise ValueError(
                f'{source} mixes files of {first} and of {second}: keep one kind, or give each a folder of '
                'its own.'
            )
        skipped += [f'{f.path}: it has {key(f)} {what} instead of {usual}' for f in odd]
        found = [f for f in found if f not in odd]
    colored = [f for f in found if not f.grey]
    return (colored + [f for f in found if f.grey] if colored else found), skipped


def _read_pixels(
    facts: FileFacts, names: Sequence[str], positions: Sequence[int], places: Sequence[tuple[float, float]]
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Pixels of windows, shape (C, N), and where there is no data."""
    with readable(facts.path), warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        warnings.simplefilter('ignore', NodataShadowWarning)
        if not facts.plain:
            with rasterio.open(facts.path) as source:
                if source.colorinterp[0] != ColorInterp.palette:
                    return _read_windows(source, positions, places)
        data = read_image(Path(facts.path), names, positions, facts.dtype)
        return data, np.zeros(data.shape, dtype=bool)


def _read_windows(
    source: rasterio.DatasetReader, positions: Sequence[int], places: Sequence[tuple[float, float]]
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    parts, empty = [], []
    side = min(WINDOW, source.height), min(WINDOW, source.width)
    for corner in dict.fromkeys(
        tuple(int(share * (n - s)) for share, n, s in zip(place, source.shape, side, strict=True))
        for place in places
    ):
        data = source.read([i + 1 for i in positions], window=Window(corner[1], corner[0], side[1], side[0]))
        if np.iscomplexobj(data):
            raise BadTileError('its pixels are complex numbers')
        without = np.zeros(data.shape, dtype=bool)
        if source.nodata is not None:
            without |= without_data(data, source.nodata)
        if data.dtype.kind == 'f':
            without |= ~np.isfinite(data)
        parts.append(data.reshape(len(data), -1))
        empty.append(without.reshape(len(data), -1))
    return np.concatenate(parts, 1), np.concatenate(empty, 1)
