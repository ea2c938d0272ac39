"""Names of bands and their order."""

import pytest

from explora_geo.bands import match_bands, same_bands, spell

RGB = ('red', 'green', 'blue')


@pytest.mark.parametrize(
    ('given', 'positions'),
    [
        (('R', 'G', 'B'), [0, 1, 2]),
        (('B04', 'B03', 'B02'), [0, 1, 2]),
        (('B4', 'b03', 'B2'), [0, 1, 2]),
        (('B02', 'B03', 'B04'), [2, 1, 0]),
        (('B02', 'B03', 'B04', 'B08'), [2, 1, 0]),
        (('nir', 'G', 'R', 'blue'), [2, 1, 3]),
    ],
)
def test_bands_are_found_by_name_in_any_order_and_spelling(
    given: tuple[str, ...], positions: list[int]
) -> None:
    assert match_bands(given, RGB) == positions
    assert [match_bands(RGB, [given[i]])[0] for i in positions] == [0, 1, 2]
    assert same_bands([given[i] for i in positions], RGB)


@pytest.mark.parametrize('given', [('B08', 'B04', 'B03'), ('1', '2', '3'), ('nir', 'red', 'green'), ()])
def test_other_bands_are_refused_with_both_lists(given: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match='the model expects red, green, blue') as caught:
        match_bands(given, RGB)
    assert f'the data contains {", ".join(given)};' in str(caught.value)


def test_only_colors_are_respelled() -> None:
    assert spell(['R', ' b04 ', 'GREY', 'B8A']) == ('red', 'b04', 'gray', 'B8A')
