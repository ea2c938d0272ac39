"""Tests of the EuroSAT dataset on the shipped tiles."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from explora_geo.datasets import EuroSATDataset

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
    assert len(ms) == 200
    assert ms.bands[-1] == 'B8A'
    assert ms[0]['image'].shape == (13, 64, 64)


def test_bands_come_in_any_order_by_name() -> None:
    dataset = EuroSATDataset(MS, None, bands=('B04', 'B03', 'B02', 'B8A'))
    for index in (0, 99, 199):
        with rasterio.open(dataset.files[index]) as file:
            expected = file.read([4, 3, 2, 13]).astype(np.float32)
        assert np.array_equal(dataset[index]['image'].numpy(), expected)


def test_a_split_file_serves_tif_and_jpeg_names(split_file: Path, tmp_path: Path) -> None:
    train = EuroSATDataset(MS, 'train', split_file=split_file)
    test = EuroSATDataset(MS, 'test', split_file=split_file)
    assert len(train) == len(test) == 90
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
    with pytest.raises(ValueError, match='there is neither; give split_file'):
        EuroSATDataset(MS, 'train')
    with pytest.raises(FileNotFoundError, match='does not exist'):
        EuroSATDataset(tmp_path / 'nowhere')
    with pytest.raises(FileNotFoundError, match='split file'):
        EuroSATDataset(MS, 'train', split_file=tmp_path / 'none.json')
    split_file.write_text('{"train": []}')
    with pytest.raises(ValueError, match=r"under 'test', but it has \['train'\]"):
        EuroSATDataset(MS, 'test', split_file=split_file)
    with pytest.raises(FileNotFoundError, match='belongs to this split'):
        EuroSATDataset(MS, 'train', split_file=split_file)
    split_file.write_text('no JSON')
    with pytest.raises(ValueError, match='is not JSON'):
        EuroSATDataset(MS, 'train', split_file=split_file)
