"""Names of spectral bands: inferred from a file and matched by name, never by position."""

from collections.abc import Sequence

RGB = ('red', 'green', 'blue')
GRAY = ('gray',)

#: Other spellings of the colors that serve as band names.
_COLORS = {'r': 'red', 'g': 'green', 'b': 'blue', 'grey': 'gray'}

#: Names of the same band: Sentinel-2's, those of STAC catalogs, and those in common use.
_SENTINEL2 = {
    'b01': ('coastal', 'b1'),
    'b05': ('rededge1', 'rededge', 'b5'),
    'b06': ('rededge2', 'b6'),
    'b07': ('rededge3', 'b7'),
    'b8a': ('nir08',),
    'b09': ('nir09', 'b9'),
    'b10': ('cirrus',),
    'b11': ('swir1', 'swir16'),
    'b12': ('swir2', 'swir22'),
    'blue': ('b02', 'b2'),
    'green': ('b03', 'b3'),
    'red': ('b04', 'b4'),
    'nir': ('b08', 'b8'),
}

#: Band names by alias, in lower case.
ALIASES = _COLORS | {other: name for name, others in _SENTINEL2.items() for other in others}


def canonical(band: str) -> str:
    """Return the name used for comparison: lower case, without aliases; `R`, `Red` and `B04` are `red`."""
    name = band.strip().lower()
    return ALIASES.get(name, name)


def spell(names: Sequence[str]) -> tuple[str, ...]:
    """Spell colors uniformly and leave other names as written."""
    plain = [_COLORS.get(name.strip().lower(), name.strip().lower()) for name in names]
    return tuple(p if p in RGB + GRAY else n.strip() for p, n in zip(plain, names, strict=True))


def same_bands(one: Sequence[str | None], other: Sequence[str | None]) -> bool:
    """Return whether two lists name the same bands in the same order, in any spelling."""
    first, second = ([canonical(n or '') for n in names] for names in (one, other))
    return first == second


def true_color_bands(bands: Sequence[str]) -> list[int]:
    """Return the positions of red, green and blue, in this order, or of the first band if one is missing."""
    names = [canonical(band) for band in bands]
    return [names.index(band) for band in RGB] if set(RGB) <= set(names) else [0]


def match_bands(
    given: Sequence[str],
    wanted: Sequence[str],
    given_by: str = 'the data contains',
    wanted_by: str = 'the model expects',
) -> list[int]:
    """Return positions of wanted bands among those given, by name in any spelling: the package's only rule.

    Args:
        given: Names of the available bands, in order.
        wanted: Names of the bands to read, in order.
        given_by: Who has the bands, for the message.
        wanted_by: Who reads them, for the message.

    Raises:
        ValueError: If a wanted band is missing; the message names both lists.
    """
    positions = {canonical(name): i for i, name in enumerate(given)}
    missing = [name for name in wanted if canonical(name) not in positions]
    if missing:
        raise ValueError(
            f'bands {missing} are missing: {wanted_by} {", ".join(wanted)}, {given_by} {", ".join(given)}; '
            'select other bands or correct the names with file_bands'
        )
    return [positions[canonical(name)] for name in wanted]


def select_bands(wanted: Sequence[str] | None, available: Sequence[str]) -> list[int]:
    """Return zero-based positions of the wanted bands in a file, in that order; of all bands if None.

    Raises:
        ValueError: If a wanted band is not available, or none is wanted.
    """
    if wanted is None:
        return list(range(len(available)))
    if isinstance(wanted, str) or not wanted:
        raise ValueError(f'bands must be a list of at least one band name, got {wanted!r}')
    return match_bands(available, wanted, 'the files contain', 'you requested')


def default_bands(count: int, dtype: str) -> tuple[str, ...]:
    """Return names for the bands of an unnamed file: gray, or the colors of 8-bit images; else none."""
    return GRAY if count == 1 else RGB if (count, dtype) == (3, 'uint8') else ()


def name_bands(
    count: int, dtype: str, descriptions: Sequence[str | None], file_bands: Sequence[str] | None, where: str
) -> tuple[str, ...]:
    """Name the bands of a file, in file order: `R`, `G`, `B` become `red`, `green`, `blue`.

    Args:
        count: Number of bands in the file.
        dtype: NumPy name of the pixel type.
        descriptions: Band descriptions stored in the file, None where there is none.
        file_bands: Names given by the user, which take precedence.
        where: File to name in error messages.

    Raises:
        ValueError: If names are missing, repeated or of the wrong number.
    """
    stated = [d for d in descriptions if d]
    names, origin = spell(file_bands or ()), 'file_bands'
    if file_bands is None and stated and len(stated) == len(descriptions):
        names, origin = spell(stated), f'the band descriptions of {where}'
    elif file_bands is None:
        names = default_bands(count, dtype)
        if not names:
            raise ValueError(
                f'{where} has {count} unnamed {dtype} bands, but bands are selected by name; '
                'set file_bands to the name of every band in file order'
            )
    if len({canonical(n) for n in names}) != len(names):
        raise ValueError(f'band names must be unique, got {names} from {origin}; rename the duplicates')
    if len(names) != count:
        raise ValueError(
            f'file_bands must name every band in file order, got {len(names)} names {names} '
            f'for the {count} bands of {where}'
        )
    return names
