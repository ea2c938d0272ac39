"""Choose bands of files by name, color or number."""

import re
from collections.abc import Sequence

from ..bands import RGB, canonical
from .survey import FileFacts

_BAND = re.compile(r'(?P<name>[^=]*[^=\s])\s*=\s*(?P<number>\d+)')


class UnnamedBandsError(ValueError):
    """Raised if bands must be named before they can be chosen."""


def choose_bands(
    wanted: str | Sequence[str] | None, facts: FileFacts, source: str
) -> tuple[tuple[str, ...], list[int]]:
    """Name the bands of files and choose among them.

    Args:
        wanted: Names in order, as a sequence or with commas, `name=number` for a band that has another name
            or none; None for red, green and blue, or all bands where there are no such.
        facts: What a file says.
        source: The archive, for messages.

    Returns:
        Names of all bands in file order, and zero-based positions of the chosen ones.

    Raises:
        UnnamedBandsError: If bands without names have to be named first.
        ValueError: If a band does not exist, or is chosen twice.
    """
    names = _names(facts)
    count = len(names)
    entries = None if wanted is None else wanted.split(',') if isinstance(wanted, str) else list(wanted)
    if entries is not None and not any(e.strip() for e in entries):
        raise ValueError(f'bands must name at least one band of {source}, such as red,green,blue.')
    chosen: list[str] = []
    for entry in entries or ():
        match = _BAND.fullmatch(entry.strip())
        if match:
            number = int(match['number'])
            if not 1 <= number <= count:
                raise ValueError(f'bands={entry}: the files of {source} have bands 1 to {count}.')
            # A name given here is taken away from any band that had it.
            names = [None if n and _same(n, match['name']) else n for n in names]
            names[number - 1] = match['name'].strip()
        chosen.append(match['name'].strip() if match else entry.strip())
    unnamed = [i for i, name in enumerate(names) if name is None]
    file_bands = tuple(name or f'band{i + 1}' for i, name in enumerate(names))
    if entries is None:
        by_color = {color_of(name): i for i, name in reversed(list(enumerate(file_bands)))}
        if all(color in by_color for color in RGB):
            return file_bands, [by_color[color] for color in RGB]
        if not unnamed:
            return file_bands, list(range(count))
        raise UnnamedBandsError(_unnamed(source, facts, file_bands))
    positions = []
    for name in chosen:
        found = [i for i, band in enumerate(file_bands) if _same(band, name)]
        if not found and unnamed:
            raise UnnamedBandsError(_unnamed(source, facts, file_bands))
        if not found:
            raise ValueError(f'{source} has no band {name}: its bands are {", ".join(file_bands)}.')
        positions.append(found[0])
    if len(set(positions)) < len(positions):
        raise ValueError(
            f'bands must differ, got {", ".join(chosen)} for {", ".join(file_bands)} of {source}.'
        )
    return file_bands, positions


def color_of(band: str) -> str:
    """Red, green or blue if a band's name says so (`R`, `B04`, `Red (665 nm)`), else the name."""
    name = canonical(band)
    words = re.findall('[a-z]+', name)
    colors = [word for word in words if word in RGB]
    return colors[0] if len(colors) == 1 and 'edge' not in words else name


def _names(facts: FileFacts) -> list[str | None]:
    """Names of the bands, None where unknown."""
    if any(facts.names):
        colors = [color_of(name) if name else None for name in facts.names]
        # Wordy descriptions of colors become these, unless two claim one; B04 and R are names already.
        return [
            color if color in RGB and colors.count(color) == 1 and canonical(name or '') != color else name
            for name, color in zip(facts.names, colors, strict=True)
        ]
    if len(facts.names) == 1:
        return ['grey']
    return list(RGB) if len(facts.names) == 3 and facts.dtype == 'uint8' else [None] * len(facts.names)


def names_for_dataset(facts: FileFacts, names: tuple[str, ...]) -> list[str] | None:
    """Names for the data set; None where it finds the same by itself, also in files of another order."""
    if facts.stated:
        same = [canonical(n or '') for n in facts.names] == [canonical(n) for n in names]
        return None if same else list(names)
    default = names == ('grey',) or (names == RGB and facts.dtype == 'uint8')
    return None if default else list(names)


def _same(band: str, other: str) -> bool:
    return canonical(band) == canonical(other) or color_of(band) == color_of(other)


def _unnamed(source: str, facts: FileFacts, names: Sequence[str]) -> str:
    known = [n for n in names if not re.fullmatch(r'band\d+', n)]
    found = f'{len(names)} {facts.dtype} bands, ' + (f'named {", ".join(known)} only' if known else 'unnamed')
    return (
        f'The files of {source} have {found} (looked at {facts.path}): name those to use by their number, '
        'such as bands=red=1,green=2,blue=3.'
    )
