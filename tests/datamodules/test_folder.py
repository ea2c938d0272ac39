"""Tests of the folder data module, driven by a Lightning trainer."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything

from explora_geo.datamodules import FolderDataModule, MaskFolderDataModule, Statistics
from explora_geo.datasets import FolderDataset
from explora_geo.datasets.packed import pack

Record = Callable[..., dict[str, list[dict[str, Any]]]]
RGB = Path(__file__).parents[1] / 'data' / 'eurosat_rgb'


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Twelve real tiles in three class folders."""
    for name in ('Forest', 'River', 'SeaLake'):
        (tmp_path / 'small' / name).mkdir(parents=True)
        for path in sorted((RGB / 'train' / name).glob('*.jpg'))[:4]:
            shutil.copy(path, tmp_path / 'small' / name)
    return tmp_path / 'small'


def test_normalized_training_tiles_have_mean_0_and_variance_1() -> None:
    datamodule = FolderDataModule(RGB / 'train', image_size=64)
    datamodule.setup('fit')
    assert datamodule.bands == ('red', 'green', 'blue')
    images = torch.stack([datamodule.train_dataset[i]['image'] for i in range(2000)])
    normalized = datamodule.aug({'image': images})['image']
    assert normalized.mean((0, 2, 3)).abs().max() < 0.05
    assert (normalized.std((0, 2, 3)) - 1).abs().max() < 0.05


def test_a_trainer_gets_augmented_training_and_plain_validation_batches(small: Path, record: Record) -> None:
    seed_everything(0)
    datamodule = FolderDataModule(small, val_root=RGB / 'test', image_size=32, batch_size=5)
    batches = record(datamodule, limit_val_batches=1)
    # 12 tiles: two full batches, the incomplete one is dropped.
    assert [len(batch['image']) for batch in batches['train']] == [5, 5]
    batch = batches['val'][0]
    assert batch['image'].shape == (5, 3, 32, 32)
    assert batch['label'].tolist() == [3] * 5  # AnnualCrop, after the three classes of training
    plain = datamodule.val_dataset[0]['image']
    expected = (plain - datamodule.mean[:, None, None]) / datamodule.std[:, None, None]
    assert torch.allclose(batch['image'][0], expected, atol=1e-5)


@pytest.mark.parametrize('workers', [0, 2])
def test_skipped_tiles_reach_the_task_by_name(small: Path, workers: int, record: Record) -> None:
    torn = small / 'River' / 'torn.jpg'
    torn.write_bytes(next(small.glob('River/*.jpg')).read_bytes()[:-50])
    statistics = Statistics('imagenet', 'imagenet')
    loading = {'batch_size': 13, 'num_workers': workers}
    datamodule = FolderDataModule(small, image_size=32, statistics=statistics, **loading)
    for batch in record(datamodule, max_epochs=2)['train']:
        assert len(batch['image']) == len(batch['label']) == 12
        assert len(batch['skipped']) == 1 and batch['skipped'][0].startswith(str(torn))


def test_a_share_can_be_held_out_for_validation() -> None:
    datamodule = FolderDataModule(RGB / 'test', image_size=64, val_split=0.1, cache=True)
    datamodule.setup('fit')
    train, val = datamodule.train_dataset, datamodule.val_dataset
    assert (len(train), len(val)) == (900, 100)
    assert not set(train.indices) & set(val.indices)
    assert train.classes == val.classes == train.dataset.classes and len(val.classes) == 10
    labels = [val.dataset.labels[i] for i in val.indices]
    assert all(labels.count(label) == 10 for label in range(10))


def test_without_validation_images_training_runs_alone(small: Path, record: Record) -> None:
    datamodule = FolderDataModule(small, image_size=32)
    batches = record(datamodule)
    # One incomplete batch is kept, as there is no other.
    assert [len(batch['image']) for batch in batches['train']] == [12]
    assert datamodule.val_dataloader() == []


def test_prediction_keeps_the_order_of_the_files(small: Path, record: Record) -> None:
    datamodule = FolderDataModule(small, image_size=32, batch_size=5)
    batches = record(datamodule, 'predict')['predict']
    labels = torch.cat([batch['label'] for batch in batches])
    assert labels.tolist() == sorted(labels.tolist()) and len(labels) == 12


def test_labels_follow_the_training_folder(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small / 'River', tmp_path / 'val' / 'River')
    datamodule = FolderDataModule(small, val_root=tmp_path / 'val', image_size=32)
    datamodule.setup('fit')
    assert datamodule.val_dataset[0]['label'] == 1
    # Classes the training folder does not know are numbered after those that it does.
    datamodule = FolderDataModule(tmp_path / 'val', val_root=small, image_size=32)
    datamodule.setup('fit')
    assert datamodule.val_dataset.classes == ('River', 'Forest', 'SeaLake')


def test_the_former_name_of_colors_still_works_with_a_warning(masks: Path) -> None:
    with pytest.warns(FutureWarning, match='colours is now called colors'):
        datamodule = MaskFolderDataModule(masks, colours=[(1, 2, 3)])
    datamodule.setup('fit')
    assert datamodule.train_dataset.colors == ((1, 2, 3),)


def test_given_statistics_follow_the_bands(small: Path) -> None:
    datamodule = FolderDataModule(
        small, bands=['blue', 'red'], statistics=Statistics({'red': 1.0, 'green': 2.0, 'blue': 3.0}, [4, 5])
    )
    datamodule.setup('fit')
    assert datamodule.mean.tolist() == [3.0, 1.0]
    assert datamodule.std.tolist() == [4.0, 5.0]
    wrong = FolderDataModule(small, statistics=Statistics([1.0]))
    with pytest.raises(ValueError, match='one value per band'):
        wrong.setup('fit')


def test_arguments_out_of_range_are_refused(small: Path) -> None:
    for kwargs, message in (
        ({'val_split': 1.0}, 'val_split must be'),
        ({'val_split': 0.1, 'val_root': small}, 'either val_root or val_split'),
    ):
        with pytest.raises(ValueError, match=message):
            FolderDataModule(small, **kwargs)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='has no test images'):
        FolderDataModule(small).test_dataloader()
    with pytest.raises(ValueError, match='leaves none of the 12'):
        FolderDataModule(small, image_size=32, val_split=0.99).setup('fit')


def test_one_image_is_enough(tmp_path: Path, small: Path, record: Record) -> None:
    (tmp_path / 'one').mkdir()
    shutil.copy(next(small.glob('River/*.jpg')), tmp_path / 'one')
    batches = record(FolderDataModule(tmp_path / 'one', image_size=32))
    assert batches['train'][0]['image'].shape == (1, 3, 32, 32)
    assert 'label' not in batches['train'][0]


def test_a_pack_takes_the_place_of_its_folder(tiles: Path, tmp_path: Path, record: Record) -> None:
    list(pack(FolderDataset(tiles), tmp_path / 'pack'))
    values = []
    for root in (tiles, tmp_path / 'pack'):
        datamodule = FolderDataModule(root, val_root=root, image_size=32, batch_size=24, num_workers=1)
        (batch,) = record(datamodule)['val']
        values.append((batch['image'], batch['label'], datamodule.mean))
    for one, two in zip(*values, strict=True):
        assert torch.equal(one, two)
