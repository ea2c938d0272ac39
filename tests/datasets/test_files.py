"""Tests of choosing files."""

from pathlib import Path

from explora_geo.datasets.files import evenly_spaced, read_list


def test_positions_are_evenly_spaced_and_unique() -> None:
    assert evenly_spaced(3, 10) == [0, 1, 2]
    assert evenly_spaced(10, 5) == [0, 2, 4, 6, 8]
    assert evenly_spaced(10, 0) == []
    assert len(set(evenly_spaced(1001, 512))) == 512


def test_a_list_starts_at_its_folder_and_leaves_urls_as_they_are(tmp_path: Path) -> None:
    lines = ['# tiles', '', 'a/1.tif', '/data/2.tif', 'https://host/3.tif', '/vsizip/4.zip/4.tif', 'a/1.tif']
    (tmp_path / 'list.txt').write_text('\n'.join(lines))
    expected = [str(tmp_path / 'a' / '1.tif'), '/data/2.tif', 'https://host/3.tif', '/vsizip/4.zip/4.tif']
    assert list(map(str, read_list(tmp_path / 'list.txt'))) == expected
