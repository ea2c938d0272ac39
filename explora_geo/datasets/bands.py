"""Names of spectral bands: guessed from a file, matched, never counted on by position."""

from collections.abc import Sequence

RGB = ('red', 'green', 'blue')
GREY = ('grey',)

#: Other spellings of a band name, in lower case.
ALIASES = {
    'r': 'red',
    'g': 'green',
    'b': 'blue',
    'gray': 'grey',
    **{f'b{i}': f'b0{i}' for i in range(1, 10)},  # Sentinel-2's B2 and B02
}


def canonical(band: str) -> str:
    """Spell a band name in the one way used for comparison.

    Args:
        band: Any spelling, e.g. ``R``, ``Red`` or ``b8a``.

    Returns:
        The name in lower case without aliases, e.g. ``red`` or ``b8a``.
    """
    name = band.strip().lower()
    return ALIASES.get(name, name)


#: Colours of Sentinel-2's bands.
_COLOURS = {'b02': 'blue', 'b03': 'green', 'b04': 'red'}


def check_order(given: Sequence[str], wanted: Sequence[str]) -> None:
    """Refuse images whose bands are those of a model in another order.

    Bands whose names say nothing to one another are accepted: only their owner knows what they are.

    Args:
        given: Bands of the images, in order; nothing is checked without any.
        wanted: Bands of the model.

    Raises:
        ValueError: If the same bands are in another order.
    """
    images, model = ([_COLOURS.get(canonical(b), canonical(b)) for b in names] for names in (given, wanted))
    if images != model and sorted(images) == sorted(model):
        raise ValueError(
            f'the data has the bands {", ".join(given)}, the model reads {", ".join(wanted)}: select the '
            'same bands in the same order'
        )


def spell(names: Sequence[str]) -> tuple[str, ...]:
    """Spell colours in one way, and leave other names as their owner wrote them."""
    return tuple(canonical(n) if canonical(n) in RGB + GREY else n.strip() for n in names)


def name_bands(
    count: int, dtype: str, descriptions: Sequence[str | None], file_bands: Sequence[str] | None, where: str
) -> tuple[str, ...]:
    """Name the bands of a file, in file order.

    Args:
        count: Number of bands in the file.
        dtype: NumPy name of the pixel type.
        descriptions: Band descriptions stored in the file, None where there is none.
        file_bands: Names given by the user, which win over everything else.
        where: File to name in error messages.

    Returns:
        One name per band; ``R``, ``G``, ``B`` become ``red``, ``green``, ``blue``.

    Raises:
        ValueError: If names are missing, repeated or of the wrong number.
    """
    if file_bands is not None:
        names = spell(file_bands)
        origin = 'file_bands'
    elif descriptions and all(descriptions):
        names = spell([d for d in descriptions if d])
        origin = f'the band descriptions of {where}'
    elif count == 1:
        names, origin = GREY, 'the default name'
    elif count == 3 and dtype == 'uint8':
        names, origin = RGB, 'the default names'
    else:
        raise ValueError(
            f'Bands are used by name, but {where} has {count} unnamed {dtype} bands; '
            'give file_bands, the name of every band in file order.'
        )
    if len({canonical(n) for n in names}) != len(names):
        raise ValueError(f'Band names must differ, but {origin} gives {names}; rename the doubles.')
    if len(names) != count:
        raise ValueError(
            f'file_bands must name every band in file order, but it names {len(names)} {names} '
            f'and {where} has {count} bands.'
        )
    return names


def same_bands(one: Sequence[str | None], other: Sequence[str | None]) -> bool:
    """Whether two files have the same bands in the same order, however they are spelled."""
    first, second = ([canonical(n or '') for n in names] for names in (one, other))
    return first == second


def select_bands(wanted: Sequence[str] | None, available: Sequence[str]) -> list[int]:
    """Find wanted bands among the available ones.

    Args:
        wanted: Band names in any order and spelling; all available bands if None.
        available: Band names in file order.

    Returns:
        Zero-based positions in the file, in the order wanted.

    Raises:
        ValueError: If a wanted band is not available, or none is wanted.
    """
    if wanted is None:
        return list(range(len(available)))
    if isinstance(wanted, str) or not wanted:
        raise ValueError(f'bands must be a list of at least one band name, got {wanted!r}.')
    positions = {canonical(name): i for i, name in enumerate(available)}
    missing = [name for name in wanted if canonical(name) not in positions]
    if missing:
        raise ValueError(
            f'Bands {missing} are not in the files: wanted {list(wanted)}, available '
            f'{list(available)}; change bands, or correct the names with file_bands.'
        )
    return [positions[canonical(name)] for name in wanted]
