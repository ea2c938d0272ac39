"""Tests of choosing files."""

from explora_geo.datasets.files import evenly_spaced


def test_positions_are_evenly_spaced_and_unique() -> None:
    assert evenly_spaced(3, 10) == [0, 1, 2]
    assert evenly_spaced(10, 5) == [0, 2, 4, 6, 8]
    assert evenly_spaced(10, 0) == []
    assert len(set(evenly_spaced(1001, 512))) == 512
