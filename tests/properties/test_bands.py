"""Bands are chosen by name, whatever their names and order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from explora_geo.bands import ALIASES, canonical, name_bands, select_bands, spell

NAME = st.text('abBrRgG0128 _ä', min_size=1, max_size=5).filter(lambda name: name.strip())
NAMES = st.lists(NAME, min_size=1, max_size=8, unique_by=canonical)


@given(NAMES, st.data())
def test_the_chosen_bands_are_those_of_the_names(names: list[str], data: st.DataObject) -> None:
    pixels = np.arange(len(names))
    wanted = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    spelled = [
        data.draw(st.sampled_from([n, n.upper() if canonical(n.upper()) == canonical(n) else n, f' {n} ']))
        for n in wanted
    ]
    chosen = pixels[select_bands(spelled, names)]
    assert [canonical(names[i]) for i in chosen] == [canonical(n) for n in wanted]


@given(NAMES, NAME)
def test_a_band_that_is_not_there_is_never_replaced(names: list[str], other: str) -> None:
    if canonical(other) in map(canonical, names):
        assert len(select_bands([other], names)) == 1
    else:
        with pytest.raises(ValueError, match='are missing'):
            select_bands([other], names)


@given(NAME)
def test_spelling_is_settled_after_once(name: str) -> None:
    assert canonical(canonical(name)) == canonical(name)
    assert spell(spell([name])) == spell([name])
    assert canonical(spell([name])[0]) == canonical(name)
    assert ALIASES.get(canonical(name), canonical(name)) == canonical(name)


@given(
    st.integers(0, 5),
    st.sampled_from(['uint8', 'uint16', 'float32']),
    st.lists(st.none() | NAME, max_size=5),
    st.none() | st.lists(NAME, max_size=5),
)
def test_every_file_gets_as_many_different_names_as_bands_or_none(
    count: int, dtype: str, descriptions: list[str | None], given_names: list[str] | None
) -> None:
    try:
        names = name_bands(count, dtype, descriptions, given_names, 'scene.tif')
    except ValueError as error:
        assert 'scene.tif' in str(error) or 'file_bands' in str(error) or 'default name' in str(error)
        return
    assert len(names) == count == len({canonical(name) for name in names})
