"""Data modules of Functional Map of the World, on tiny copies of the real layout."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from torchgeo.datamodules import BaseDataModule

from explora_geo.datamodules import (
    FMoWRGBDataModule,
    FMoWSentinelDataModule,
    FMoWTemporalDataModule,
    Statistics,
)
from explora_geo.datamodules.fmow import EVAL_CROP, RGB_MEAN, SENTINEL_MEAN, SENTINEL_STD
from explora_geo.datasets import FMoWRGB, FMoWSentinel
from explora_geo.models.tokenizers import SENTINEL2

Record = Callable[..., dict[str, list[dict[str, Any]]]]


def test_rgb_batches_are_normalized_by_satmaes_values(fmow: Path, record: Record) -> None:
    datamodule = FMoWRGBDataModule(fmow, image_size=32, batch_size=4)
    assert isinstance(datamodule, BaseDataModule)
    batches = record(datamodule)
    assert [b['image'].shape for b in batches['train']] == [(4, 3, 32, 32)] * 2
    (first, *_) = batches['val']
    plain = FMoWRGB(fmow, 'val', size=32, crop_pct=EVAL_CROP)[0]['image']
    mean, std = (x.view(3, 1, 1) for x in (datamodule.mean, datamodule.std))
    assert_close(first['image'][0], (plain - mean) / std, atol=1e-4, rtol=0)
    assert RGB_MEAN['green'] == pytest.approx(0.42147991 * 255)


def test_sentinel_batches_are_clipped_to_satmaes_range(fmow_sentinel: Path, record: Record) -> None:
    datamodule = FMoWSentinelDataModule(fmow_sentinel, image_size=24, batch_size=3)
    batches = record(datamodule)
    assert datamodule.bands == SENTINEL2
    (first, *_) = batches['val']
    plain = FMoWSentinel(fmow_sentinel, 'val', SENTINEL2, size=24, crop_pct=EVAL_CROP)[0]['image']
    low = torch.tensor([SENTINEL_MEAN[b] - 2 * SENTINEL_STD[b] for b in SENTINEL2]).view(-1, 1, 1)
    span = torch.tensor([4 * SENTINEL_STD[b] for b in SENTINEL2]).view(-1, 1, 1)
    assert_close(first['image'][0], ((plain - low) / span).clamp(0, 1), atol=1e-4, rtol=0)
    train = torch.cat([b['image'] for b in batches['train']])
    assert train.shape[1:] == (10, 24, 24) and -0.5 < train.min() and train.max() < 1.5


def test_statistics_follow_the_names_of_the_bands(fmow_sentinel: Path) -> None:
    bands = ('B8A', 'B02', 'B09')
    datamodule = FMoWSentinelDataModule(fmow_sentinel, bands=bands, statistics=Statistics(clip=False))
    datamodule.setup('fit')
    assert_close(datamodule.mean, torch.tensor([SENTINEL_MEAN[b] for b in bands]))
    assert_close(datamodule.std, torch.tensor([SENTINEL_STD[b] for b in bands]))
    assert (SENTINEL_MEAN['B8A'], SENTINEL_MEAN['B09'], SENTINEL_MEAN['B10']) == (1972.62, 582.73, 14.77)
    with pytest.warns(FutureWarning, match=r'use statistics\.clip'):
        former = FMoWSentinelDataModule(fmow_sentinel, bands=bands, normalise='standard')
    former.setup('fit')
    assert torch.equal(former.mean, datamodule.mean) and not former.clip
    with pytest.raises(ValueError, match='normalise must be clip or standard'):
        FMoWSentinelDataModule(fmow_sentinel, normalise='quantile')


def test_series_come_with_their_times_and_one_crop(fmow: Path, record: Record) -> None:
    batches = record(FMoWTemporalDataModule(fmow, num_frames=2, image_size=24, batch_size=5))
    for batch in batches['train'] + batches['val']:
        assert batch['image'].shape == (5, 2, 3, 24, 24)
        assert batch['timestamps'].shape == (5, 2, 3) and batch['label'].shape == (5,)
    place = batches['val'][1]  # rows 5 to 9; row 6 is a place with one image
    assert torch.equal(place['image'][1, 0], place['image'][1, 1])
    values = torch.cat([b['image'] for b in batches['val']])
    assert values.mean().abs() < 1 and 0.1 < values.std() < 2


def test_series_of_validation_are_the_same_in_every_epoch(fmow: Path, record: Record) -> None:
    datamodule = FMoWTemporalDataModule(fmow, image_size=24, batch_size=10)
    first, second = record(datamodule, max_epochs=2)['val']
    assert torch.equal(first['image'], second['image'])
    assert torch.equal(first['timestamps'], second['timestamps'])


def test_splits_without_a_list_are_left_out(fmow: Path) -> None:
    (fmow / 'val_62classes.csv').rename(fmow / 'test_62classes.csv')
    (fmow / 'fmow' / 'val').rename(fmow / 'fmow' / 'test')
    text = (fmow / 'test_62classes.csv').read_text().replace('fmow/val/', 'fmow/test/')
    (fmow / 'test_62classes.csv').write_text(text)
    datamodule = FMoWRGBDataModule(fmow, image_size=32)
    for stage in ('fit', 'test', 'predict'):
        datamodule.setup(stage)
    assert datamodule.val_dataset is None and datamodule.val_dataloader() == []
    assert len(datamodule.test_dataset) == 10  # type: ignore[arg-type]
    assert datamodule.predict_dataset is datamodule.test_dataset
