"""Tests of the EuroSAT data module on the shipped tiles."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser
from torchgeo.datamodules import BaseDataModule
from torchgeo.datamodules.eurosat import MEAN, STD

from explora_geo.datamodules import Augment, EuroSATDataModule

DATA = Path(__file__).parents[1] / 'data'


@pytest.fixture
def split_file(tmp_path: Path) -> Path:
    """A split of the 13-band tiles into 96 and 24."""
    names = sorted(path.name for path in (DATA / 'eurosat_ms').glob('*/*.tif'))
    path = tmp_path / 'split.json'
    test = names[::5]
    path.write_text(json.dumps({'train': sorted(set(names) - set(test)), 'test': test}))
    return path


def test_jpeg_tiles_are_split_into_train_val_and_test() -> None:
    datamodule = EuroSATDataModule(DATA / 'eurosat_rgb', batch_size=100)
    datamodule.setup('fit')
    datamodule.setup('test')
    sizes = [len(getattr(datamodule, f'{s}_dataset')) for s in ('train', 'val', 'test')]
    assert sizes == [1800, 200, 1000]
    batch = next(iter(datamodule.val_dataloader()))
    assert batch['image'].shape == (100, 3, 64, 64)
    assert batch['label'].unique().tolist() == [0, 1, 2, 3, 4]


def test_a_label_means_the_same_class_in_every_part(tmp_path: Path) -> None:
    for part, names in (('train', ('Forest', 'River')), ('test', ('AnnualCrop', 'Forest', 'River'))):
        for name in names:
            (tmp_path / part / name).mkdir(parents=True)
            shutil.copy(next((DATA / 'eurosat_rgb' / part / name).glob('*.jpg')), tmp_path / part / name)
    datamodule = EuroSATDataModule(tmp_path, val_split=0)
    datamodule.setup('test')
    assert datamodule.test_dataset.classes == ('Forest', 'River', 'AnnualCrop')
    assert [int(datamodule.test_dataset[i]['label']) for i in range(3)] == [2, 0, 1]


def test_13_band_statistics_are_those_of_torchgeo_by_name(split_file: Path) -> None:
    bands = ('B8A', 'B02', 'B10')
    datamodule = EuroSATDataModule(DATA / 'eurosat_ms', split_file, bands=bands)
    datamodule.setup('fit')
    assert torch.allclose(datamodule.mean, torch.tensor([MEAN[band] for band in bands]))
    assert torch.allclose(datamodule.std, torch.tensor([STD[band] for band in bands]))
    datamodule.setup('test')
    assert len(datamodule.test_dataset) == 24


def test_normalized_13_band_tiles_are_near_mean_0_and_variance_1(split_file: Path) -> None:
    datamodule = EuroSATDataModule(DATA / 'eurosat_ms', split_file, batch_size=96)
    datamodule.setup('fit')
    batch = datamodule.aug(next(iter(datamodule.train_dataloader())))
    # TorchGeo's values are those of all 27,000 tiles, so a sample of them differs somewhat.
    assert batch['image'].mean((0, 2, 3)).abs().max() < 0.5
    assert 0.6 < batch['image'].std((0, 2, 3)).min() < batch['image'].std((0, 2, 3)).max() < 1.6


@pytest.mark.parametrize('former', [False, True])
@pytest.mark.parametrize('mean', ['auto', '[1, 2]', '{B8A: 1.0, B04: 2.0}'])
def test_the_command_line_builds_it_from_text(split_file: Path, mean: str, former: bool) -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(BaseDataModule, 'data')
    name = 'explora_geo.datamodules.EuroSATDataModule'
    options = {
        'root': DATA / 'eurosat_ms',
        'split_file': split_file,
        'bands': '[B8A, B04]',
        'mean' if former else 'statistics.mean': mean,
        'crop_scale' if former else 'augment.crop_scale': '[0.5, 1]',
    }
    config = parser.parse_args(['--data', name] + [f'--data.{key}={value}' for key, value in options.items()])
    # jsonargparse 4.49 renamed it
    instantiate = getattr(parser, 'instantiate', None) or parser.instantiate_classes
    with pytest.warns(FutureWarning, match=r'use augment\.crop_scale') if former else nullcontext():
        datamodule = instantiate(config).data
    datamodule.setup('fit')
    assert datamodule.bands == ('B8A', 'B04')
    assert datamodule.augment == Augment((0.5, 1.0), True, False, False)
    if mean != 'auto':
        assert datamodule.mean.tolist() == [1.0, 2.0]
