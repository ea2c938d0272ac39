"""Names of bands and their order."""

import pytest

from explora_geo.datasets.bands import check_order


@pytest.mark.parametrize(
    ('given', 'wanted'),
    [
        (('red', 'green', 'blue'), ('R', 'G', 'B')),
        (('B04', 'B03', 'B02'), ('red', 'green', 'blue')),
        (('B4', 'b03', 'B2'), ('red', 'green', 'blue')),
        (('1', '2', '3'), ('red', 'green', 'blue')),
        ((), ('red', 'green', 'blue')),
    ],
)
def test_the_same_bands_in_order_or_unknown_ones_are_accepted(
    given: tuple[str, ...], wanted: tuple[str, ...]
) -> None:
    check_order(given, wanted)


@pytest.mark.parametrize('given', [('blue', 'green', 'red'), ('B02', 'B03', 'B04'), ('G', 'R', 'B')])
def test_the_same_bands_in_another_order_are_refused(given: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match='select the same bands in the same order'):
        check_order(given, ('red', 'green', 'blue'))
