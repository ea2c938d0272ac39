"""Packs hold what the folder held, survive interruptions, and notice damage."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from explora_geo.datasets import FolderDataset, PackedDataset
from explora_geo.datasets import packed as packing_module
from explora_geo.datasets.eurosat import MS_BANDS
from explora_geo.datasets.packed import is_pack, pack

MS = Path(__file__).parents[1] / 'data' / 'eurosat_ms'


@pytest.fixture
def make(tiles: Path, tmp_path: Path) -> Callable[..., Path]:
    """Pack the 24 RGB tiles."""

    def call(**kwargs: object) -> Path:
        for _ in pack(FolderDataset(tiles, **kwargs), tmp_path / 'pack'):  # type: ignore[arg-type]
            pass
        return tmp_path / 'pack'

    return call


def same(one: FolderDataset, two: FolderDataset) -> None:
    assert len(one) == len(two)
    for i in range(len(one)):
        a, b = one[i], two[i]
        assert set(a) == set(b)
        assert torch.equal(a['image'], b['image']) and a['image'].dtype == b['image'].dtype
        assert a['label'] == b['label']


def test_a_pack_gives_the_samples_of_its_folder(make: Callable[..., Path], tiles: Path) -> None:
    packed, folder = PackedDataset(make()), FolderDataset(tiles)
    same(packed, folder)
    assert packed.classes == folder.classes and packed.bands == folder.bands
    assert packed.skipped_count == 0 and is_pack(packed.root) and not is_pack(tiles)
    same(PackedDataset(packed.root, bands=['blue', 'red']), FolderDataset(tiles, bands=['blue', 'red']))
    same(PackedDataset(packed.root, size=32), FolderDataset(tiles, size=32))
    same(pickle.loads(pickle.dumps(packed)), folder)  # as for worker processes


def test_13_bands_keep_their_names_and_type(tmp_path: Path) -> None:
    folder = FolderDataset(MS, file_bands=MS_BANDS, bands=['B8A', 'B02', 'B09'])
    for _ in pack(folder, tmp_path):
        pass
    packed = PackedDataset(tmp_path)
    assert packed.header.dtype == 'uint16' and packed.bands == ('B8A', 'B02', 'B09')
    same(packed, folder)
    assert (tmp_path / 'pixels.bin').stat().st_size == 120 * 3 * 64 * 64 * 2


def test_an_interrupted_pack_goes_on_where_it_stopped(
    make: Callable[..., Path], tiles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing_module, 'BLOCK', 5)
    out = tiles.parent / 'pack'
    source = FolderDataset(tiles)
    progress = pack(source, out)
    assert [next(progress) for _ in range(2)] == [(5, 24), (10, 24)]
    progress.close()
    with pytest.raises(ValueError, match='is missing 14 of 24 tiles; run the same explora-geo pack command'):
        PackedDataset(out)
    read: list[int] = []
    load = source._load
    monkeypatch.setattr(source, '_load', lambda i: read.append(i) or load(i))
    assert [done for done, _ in pack(source, out)] == [15, 20, 24]
    assert sorted(read) == [0, *range(10, 24)]  # the first tells the size
    same(PackedDataset(out), FolderDataset(tiles))


def test_a_tile_that_does_not_fit_is_skipped_with_its_reason(make: Callable[..., Path], tiles: Path) -> None:
    files = FolderDataset(tiles).files
    files[3].write_bytes(b'no image')

    Image.new('RGB', (60, 64)).save(files[7])
    packed = PackedDataset(make())
    assert packed.skipped_count == 2
    assert 'cannot be read' in packed[3]['skipped'] and files[3].name in packed[3]['skipped']
    assert 'uint8 of shape (3, 64, 60), expected uint8 of shape (3, 64, 64)' in packed[7]['skipped']
    assert 'image' in packed[4]
    with pytest.raises(ValueError, match='repair or remove the file'):
        PackedDataset(packed.root, strict=True)[3]


def test_a_complete_pack_is_checked_tile_by_tile(make: Callable[..., Path]) -> None:
    out = make()
    make()
    pixels = np.memmap(out / 'pixels.bin', np.uint8, 'r+')
    pixels[12 * 3 * 64 * 64 + 5] ^= 1
    pixels.flush()
    with pytest.raises(ValueError, match=r'differs from what was written; check the disk'):
        make()


def test_another_folder_does_not_go_into_the_same_pack(make: Callable[..., Path], tiles: Path) -> None:
    out = make()
    for change in ({'bands': ['red']}, {'size': 32}):
        with pytest.raises(ValueError, match=r'contains a pack with other (shape|bands)'):
            make(**change)
    FolderDataset(tiles).files[0].unlink()
    with pytest.raises(ValueError, match='other shape, files'):
        make()
    assert len(PackedDataset(out)) == 24


@pytest.mark.parametrize(
    ('header', 'sentence'), [('', 'is damaged'), ('{}', 'is damaged'), ('[]', 'is damaged')]
)
def test_a_damaged_header_is_refused(make: Callable[..., Path], header: str, sentence: str) -> None:
    out = make()
    content = json.loads((out / 'pack.json').read_text())
    (out / 'pack.json').write_text(header)
    with pytest.raises(ValueError, match=sentence):
        PackedDataset(out)
    (out / 'pack.json').write_text(json.dumps({**content, 'format': 'other'}))
    with pytest.raises(ValueError, match=r"not a pack header: format must be .*, got 'other'"):
        PackedDataset(out)


def test_what_is_no_pack_is_named(tiles: Path) -> None:
    with pytest.raises(FileNotFoundError, match='is not a pack'):
        PackedDataset(tiles)


def test_a_folder_without_a_usable_tile_makes_no_pack(tmp_path: Path, tiles: Path) -> None:
    source = FolderDataset(tiles)
    for path in source.files:
        path.write_bytes(b'')
    with pytest.raises(ValueError, match='none of the 24 images'):
        next(pack(source, tmp_path / 'pack'))
    assert not (tmp_path / 'pack').exists()
