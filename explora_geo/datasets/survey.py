"""Survey an archive from a sample of its files, and choose its bands by name, color or number."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.windows import Window

from explora_geo.bands import RGB, canonical, default_bands, same_bands
from explora_geo.datasets.files import evenly_spaced, is_list, is_pattern, locate_images, no_images
from explora_geo.datasets.images import (
    BadTileError,
    Header,
    depth,
    open_raster,
    read_headers,
    read_image,
    without_data,
)
from explora_geo.datasets.remote import PathLike, locate

#: Maximum number of files opened, of remote files opened, and of files decoded.
OPENED, OPENED_REMOTE, DECODED = 200, 8, 32
#: Side of the decoded windows, pixels.
WINDOW = 512
#: Centers of these windows, as shares of height and width.
PLACES = ((0.5, 0.5), (0.3, 0.3), (0.7, 0.7), (0.3, 0.7), (0.7, 0.3))
#: Largest share of files that may differ from the rest and are skipped.
ODD = 0.05

_BAND = re.compile(r'(?P<name>[^=]*[^=\s])\s*=\s*(?P<number>\d+)')


class UnnamedBandsError(ValueError):
    """Error for bands that must be named before they can be chosen."""


@dataclass(frozen=True)
class Survey:
    """Headers of a sample of files."""

    source: str  # the archive as it was given, for messages
    root: Path | None  # folder of the files; None for single files, remote files and sequences
    files: list[Path | str]
    found: list[Header]  # of the sampled files that are alike; the first is representative
    skipped: list[str]  # other sampled files, `<path>: <reason>`

    @property
    def size(self) -> tuple[int, int]:
        """Median height and width, pixels."""
        return int(np.median([f.height for f in self.found])), int(np.median([f.width for f in self.found]))

    @property
    def crs(self) -> str | None:
        """Most common coordinate reference system, and the number of others."""
        (usual, _), *others = Counter(f.crs for f in self.found).most_common()
        if usual and len(usual) > 40:  # well-known text can fill a screen
            usual = 'a custom CRS'
        return f'{usual} and {len(others)} others' if usual and others else usual


def survey(archive: PathLike | Sequence[PathLike]) -> Survey:
    """Read the headers of at most 200 evenly spaced files, 8 if they are remote.

    Raises:
        FileNotFoundError: If there is no such archive, or it is empty.
        ValueError: If none of the files can be read, or more than one in twenty differs from the rest.
    """
    if isinstance(archive, str | os.PathLike):
        source = os.fspath(archive)
        root, files = _find(archive)
    else:
        source = ', '.join(str(one) for one in archive)
        root, files = None, [file for one in archive for file in _find(one)[1]]
    if not files:
        raise no_images(source or 'the archive')
    remote = any(isinstance(file, str) for file in files)
    found, skipped = read_headers(files, OPENED_REMOTE if remote else OPENED, source)
    for what, key in (('bands', lambda h: h.count), ('pixels', lambda h: depth(h.dtype))):
        found, odd = _alike(found, source, key, what)
        skipped += odd
    return Survey(source, root, files, sorted(found, key=_gray), skipped)


def _find(archive: PathLike) -> tuple[Path | None, list[Path | str]]:
    """Return the folder of an archive's files, or None if they cannot be tiles, and the files."""
    place = locate(archive)
    if isinstance(place, str) or (place.is_file() and not is_list(place)):
        return None, [place]
    if not place.exists() and not is_pattern(place):
        raise FileNotFoundError(f'the archive {archive} does not exist; check the path')
    return locate_images(place)


def _gray(header: Header) -> bool:
    """Return whether an image may be a colorless picture in a color set."""
    return header.whole and header.count == 1 and header.dtype == 'uint8'


def _alike(
    found: list[Header], source: str, key: Callable[[Header], Any], what: str
) -> tuple[list[Header], list[str]]:
    """Split files into those like the majority and the rest, `<path>: <reason>`."""
    colored = [header for header in found if not _gray(header)]
    if not colored:
        return found, []
    usual = Counter(map(key, colored)).most_common(1)[0][0]
    # Gray pictures in a color set are read as color.
    odd = [h for h in found if key(h) != usual and not (_gray(h) and usual in (3, '8-bit'))]
    if len(odd) > ODD * len(found):
        one = next(header for header in found if key(header) == usual)
        first, second = (f'{key(header)} {what} ({header.path})' for header in (one, odd[0]))
        raise ValueError(
            f'{source} mixes files with {first} and with {second}; keep one kind, or move each kind to its '
            'own folder'
        )
    skipped = [f'{header.path}: has {key(header)} {what}, expected {usual}' for header in odd]
    return [header for header in found if header not in odd], skipped


def sample_values(
    survey: Survey, names: Sequence[str], positions: Sequence[int]
) -> tuple[tuple[float, float, float], list[str]]:
    """Read windows of 512 px from at most 32 files, several per file if there are few.

    Args:
        survey: Headers of the files.
        names: Names of all bands in file order.
        positions: Zero-based positions of the bands to read.

    Returns:
        Smallest and largest valid value and the share of nodata pixels, in [0, 1]; and the damaged files,
        `<path>: <reason>`.

    Raises:
        ValueError: If no pixel is valid.
    """
    low, high, full, pixels = np.inf, -np.inf, 0, 0
    skipped = []
    # Rotated scenes hold no data at some of these places.
    places = PLACES[: max(1, DECODED // len(survey.found))]
    for index in evenly_spaced(len(survey.found), DECODED):
        header = survey.found[index]
        try:
            # A list, because a generator would raise after some windows were counted.
            windows = list(_read_windows(header, names, positions, places))
        except BadTileError as error:
            skipped.append(f'{header.path}: {error}')
            continue
        for data in windows:
            pixels, full = pixels + data.size, full + data.count()
            if data.count():
                low, high = min(low, float(data.min())), max(high, float(data.max()))
    if low > high:
        reason = f'first: {skipped[0]}' if skipped else 'they contain only nodata'
        raise ValueError(f'the files checked in {survey.source} have no usable pixels ({reason})')
    return (low, high, float(1 - full / pixels)), skipped


def _read_windows(
    header: Header, names: Sequence[str], positions: Sequence[int], places: Sequence[tuple[float, float]]
) -> Iterator[np.ma.MaskedArray[Any, Any]]:
    """Yield the pixels of windows, shape (C, H, W), with nodata masked."""
    if header.whole:
        yield np.ma.masked_array(read_image(Path(header.path), names, positions, header.dtype))
        return
    with open_raster(header.path, any_size=True) as source:
        height, width = min(WINDOW, source.height), min(WINDOW, source.width)
        corners = [(int(y * (source.height - height)), int(x * (source.width - width))) for y, x in places]
        for row, column in dict.fromkeys(corners):
            data = source.read([i + 1 for i in positions], window=Window(column, row, width, height))
            if np.iscomplexobj(data):
                raise BadTileError('has complex pixels')
            data = np.ma.masked_invalid(data)
            if source.nodata is not None:
                data = np.ma.masked_where(without_data(data.data, source.nodata), data)
            yield data


def choose_bands(
    wanted: str | Sequence[str] | None, header: Header, source: str
) -> tuple[tuple[str, ...], list[int]]:
    """Name the bands of the files and choose among them.

    Args:
        wanted: Names in order, as a sequence or comma-separated, `name=number` for a band with another name
            or none; None for red, green and blue, or all bands if these are missing.
        header: Header of a representative file.
        source: The archive, for messages.

    Returns:
        Names of all bands in file order, and zero-based positions of the chosen ones.

    Raises:
        UnnamedBandsError: If unnamed bands must be named first.
        ValueError: If a band does not exist, or is chosen twice.
    """
    names = _names(header)
    entries = wanted.split(',') if isinstance(wanted, str) else wanted
    if entries is not None and not any(entry.strip() for entry in entries):
        raise ValueError(f'bands must name at least one band in {source}, such as red,green,blue')
    chosen: list[str] = []
    for entry in entries or ():
        match = _BAND.fullmatch(entry.strip())
        chosen.append(match['name'].strip() if match else entry.strip())
        if match:
            number = int(match['number'])
            if not 1 <= number <= len(names):
                raise ValueError(f'bands={entry}: band number must be between 1 and {len(names)} in {source}')
            # The name moves here from the band that had it.
            if (had := _position(chosen[-1], names)) is not None:
                names[had] = None
            names[number - 1] = chosen[-1]
    file_bands = tuple(name or f'band{i + 1}' for i, name in enumerate(names))
    found = [_position(name, file_bands) for name in (RGB if entries is None else chosen)]
    if entries is None and None in found:
        found = [None if name is None else i for i, name in enumerate(names)]
    if None in names and None in found:
        known = ', '.join(filter(None, names))
        named = f'only {known} named' if known else 'all unnamed'
        raise UnnamedBandsError(
            f'{source} has {len(names)} {header.dtype} bands, {named} (checked {header.path}); assign names '
            'by band number, such as bands=red=1,green=2,blue=3'
        )
    if None in found:
        missing = chosen[found.index(None)]
        raise ValueError(f'{source} has no band {missing}, available bands: {", ".join(file_bands)}')
    positions = [i for i in found if i is not None]
    if len(set(positions)) < len(positions):
        raise ValueError(
            f'bands must be unique, got {", ".join(chosen)}; {source} has {", ".join(file_bands)}'
        )
    return file_bands, positions


def names_for_dataset(header: Header, names: tuple[str, ...]) -> list[str] | None:
    """Return names for the data set; None if it finds them itself, even in files of another order."""
    stated = all(header.descriptions)
    own = header.descriptions if stated else default_bands(header.count, header.dtype)
    return None if same_bands(own, names) else list(names)


def _color_of(band: str) -> str:
    """Return red, green or blue if a band's name says so (`R`, `B04`, `Red (665 nm)`), else the name."""
    name = canonical(band)
    words = re.findall('[a-z]+', name)
    colors = [word for word in words if word in RGB]
    return colors[0] if len(colors) == 1 and 'edge' not in words else name


def _names(header: Header) -> list[str | None]:
    """Return the names of the bands, None where unknown."""
    given = [name.lower() for name in header.descriptions if name]
    doubled = len(set(given)) < len(given)  # a text shared by several bands names none
    tags = header.colors or (None,) * header.count
    names = [tag if doubled else name or tag for name, tag in zip(header.descriptions, tags, strict=True)]
    if not any(names):
        return [*default_bands(header.count, header.dtype)] or names
    colors = [_color_of(name) if name else None for name in names]
    # Wordy descriptions become the color they name, unless two claim it; B04 and R are names already.
    return [
        color if color in RGB and colors.count(color) == 1 and canonical(name or '') != color else name
        for name, color in zip(names, colors, strict=True)
    ]


def _position(band: str, names: Sequence[str | None]) -> int | None:
    """Return the position of a band by its name, or else by the color in its name."""
    known = [canonical(name or '') for name in names]
    return next((known.index(name) for name in (canonical(band), _color_of(band)) if name in known), None)
