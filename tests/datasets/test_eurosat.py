"""Tests of the EuroSAT dataset on the shipped tiles."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from torchgeo.datasets import EuroSAT

from explora_geo.datasets import EuroSATDataset
from explora_geo.models.tokenizers import SENTINEL2

DATA = Path(__file__).parents[1] / 'data'
RGB = DATA / 'eurosat_rgb'
MS = DATA / 'eurosat_ms'


@pytest.fixture
def split_file(tmp_path: Path) -> Path:
    """A split that holds half of the 13-band tiles, and names no tile of the class River."""
    names = sorted(path.name for path in MS.glob('*/*.tif') if path.parent.name != 'River')
    path = tmp_path / 'split.json'
    path.write_text(json.dumps({'train': names[::2], 'test': names[1::2]}))
    return path


def test_the_shipped_tiles_are_complete_and_disjoint() -> None:
    train, test = EuroSATDataset(RGB, 'train'), EuroSATDataset(RGB, 'test')
    assert (len(train), len(test)) == (2000, 1000)
    assert train.classes == test.classes and len(train.classes) == 10
    assert not {p.name for p in train.files} & {p.name for p in test.files}
    assert all(p.stem.startswith(p.parent.name) for p in train.files)


def test_the_kind_of_tiles_decides_the_bands() -> None:
    assert EuroSATDataset(RGB, 'test').bands == ('red', 'green', 'blue')
    ms = EuroSATDataset(MS, None)
    assert len(ms) == 120
    assert ms.bands[-1] == 'B8A'
    assert ms[0]['image'].shape == (13, 64, 64)


def test_a_split_file_serves_tif_and_jpeg_names(split_file: Path, tmp_path: Path) -> None:
    train = EuroSATDataset(MS, 'train', split_file=split_file)
    test = EuroSATDataset(MS, 'test', split_file=split_file)
    assert len(train) == len(test) == 54
    assert not set(train.files) & set(test.files)

    flat = tmp_path / 'jpeg'
    shutil.copytree(RGB / 'train' / 'Forest', flat / 'Forest')
    names = sorted(path.stem for path in (flat / 'Forest').iterdir())
    split_file.write_text(json.dumps({'train': [f'{name}.tif' for name in names[:7]]}))
    assert len(EuroSATDataset(flat, 'train', split_file=split_file)) == 7


def test_a_class_without_tiles_in_a_split_keeps_its_label(split_file: Path) -> None:
    dataset = EuroSATDataset(MS, 'train', split_file=split_file)
    assert len(dataset.classes) == 10
    last = dataset[-1]['label']
    assert dataset.files[-1].parent.name == 'SeaLake'
    assert torch.equal(last, torch.tensor(9))


def test_unusable_splits_say_what_is_missing(split_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='neither was found; pass split_file'):
        EuroSATDataset(MS, 'train')
    with pytest.raises(FileNotFoundError, match='does not exist'):
        EuroSATDataset(tmp_path / 'nowhere')
    with pytest.raises(FileNotFoundError, match='split file'):
        EuroSATDataset(MS, 'train', split_file=tmp_path / 'none.json')
    split_file.write_text('{"train": []}')
    with pytest.raises(ValueError, match=r"under 'test', got \['train'\]"):
        EuroSATDataset(MS, 'test', split_file=split_file)
    with pytest.raises(FileNotFoundError, match='no images for this split'):
        EuroSATDataset(MS, 'train', split_file=split_file)
    split_file.write_text('no JSON')
    with pytest.raises(ValueError, match='is not valid JSON'):
        EuroSATDataset(MS, 'train', split_file=split_file)


@pytest.fixture
def torchgeo_root(tmp_path: Path) -> Path:
    """Real 13-band tiles in the folders in which TorchGeo downloads EuroSAT."""
    root = tmp_path / 'eurosat'
    tiles = [p for name in ('Forest', 'River') for p in sorted((MS / name).glob('*.tif'))[:6]]
    for tile in tiles:
        folder = root / EuroSAT.base_dir / tile.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / tile.name).symlink_to(tile)
    for split, chosen in (('train', tiles[::2]), ('val', tiles[1::4]), ('test', tiles[3::4])):
        (root / f'eurosat-{split}.txt').write_text('\n'.join(p.stem + '.jpg' for p in chosen) + '\n')
    return root


def test_torchgeos_download_gives_the_same_images_and_labels(torchgeo_root: Path) -> None:
    bands = ('B8A', 'B02', 'B12', 'B09')
    for split, count in (('train', 6), ('val', 3), ('test', 3)):
        ours = EuroSATDataset(torchgeo_root, split, bands=bands)
        theirs = EuroSAT(str(torchgeo_root), split, bands=bands)
        assert len(ours) == len(theirs) == count
        for i in range(count):
            assert torch.equal(ours[i]['image'], theirs[i]['image'])
            assert int(ours[i]['label']) == int(theirs[i]['label'])


def test_b8a_is_the_last_band_of_the_files_and_is_never_taken_for_b09(torchgeo_root: Path) -> None:
    sample = EuroSATDataset(torchgeo_root, 'train', bands=SENTINEL2)[0]['image']
    dataset = EuroSATDataset(torchgeo_root, 'train')
    with rasterio.open(dataset.files[0]) as source:
        pixels = source.read()
    by_name = dict(zip(dataset.file_bands, pixels, strict=True))
    assert dataset.file_bands.index('B8A') == 12
    assert np.array_equal(sample[SENTINEL2.index('B8A')].numpy(), pixels[12])
    for band, plane in zip(SENTINEL2, sample, strict=True):
        assert np.array_equal(plane.numpy(), by_name[band])
    # Near infrared: B8A resembles its neighbour B08, which the water vapour band B09 does not.
    levels = {b: float(np.mean(by_name[b])) for b in ('B08', 'B8A', 'B09')}
    assert abs(levels['B8A'] - levels['B08']) < abs(levels['B09'] - levels['B08'])


def test_the_download_is_torchgeos(torchgeo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Downloads(EuroSAT):
        def __init__(self, root: str, split: str, **kwargs: bool) -> None:
            asked.append((split, kwargs))
            shutil.copytree(torchgeo_root, root, dirs_exist_ok=True)

    monkeypatch.setattr('explora_geo.datasets.eurosat.EuroSAT', Downloads)
    root = torchgeo_root.parent / 'new'
    dataset = EuroSATDataset(root, 'val', download=True)
    assert len(dataset) == 3 and asked[0] == ('train', {'download': True})
    EuroSATDataset(root, 'val', download=True)
    assert len(asked) == 3  # what is there is not asked for again


def test_a_missing_list_of_torchgeo_is_named(torchgeo_root: Path) -> None:
    (torchgeo_root / 'eurosat-val.txt').unlink()
    with pytest.raises(FileNotFoundError, match=r'eurosat-val\.txt does not exist; .* set download=True'):
        EuroSATDataset(torchgeo_root, 'val')


def test_the_catalogue_places_every_tile(torchgeo_root: Path) -> None:
    catalog = EuroSATDataset(torchgeo_root, None).catalog
    assert len(catalog) == 12 and set(catalog['category']) == {'Forest', 'River'}
    assert catalog.crs == 'EPSG:4326' and catalog.geometry.is_valid.all()
    west, south, east, north = catalog.total_bounds
    assert -25 < west < east < 45 and 30 < south < north < 72  # Europe
    unplaced = EuroSATDataset(RGB, 'test').catalog
    assert unplaced.geometry.isna().all() and len(unplaced) == 1000
