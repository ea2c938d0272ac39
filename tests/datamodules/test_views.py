"""Every data module makes several crops of an image where it is told to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from explora_geo.datamodules import EuroSATDataModule, FolderDataModule, SceneDataModule
from explora_geo.datamodules.base import ArchiveDataModule
from explora_geo.datasets.eurosat import MS_BANDS
from explora_geo.transforms import ViewsConfig

Record = Callable[..., dict[str, list[dict[str, Any]]]]
DATA = Path(__file__).parents[1] / 'data'
VIEWS = ViewsConfig(global_size=32, local_size=16, num_local=2)
MODULES: dict[str, Callable[..., ArchiveDataModule]] = {
    'folder': lambda **k: FolderDataModule(
        DATA / 'eurosat_rgb' / 'train', val_root=DATA / 'eurosat_rgb' / 'test', image_size=48, **k
    ),
    'bands': lambda **k: FolderDataModule(
        DATA / 'eurosat_ms', file_bands=MS_BANDS, image_size=48, val_split=0.2, **k
    ),
    'eurosat': lambda **k: EuroSATDataModule(DATA / 'eurosat_rgb', image_size=48, **k),
    'scenes': lambda **k: SceneDataModule(
        DATA / 'naip',
        val_paths=DATA / 'naip',
        file_bands=('red', 'green', 'blue', 'nir'),
        patch_size=48,
        length=8,
        **k,
    ),
}


@pytest.mark.parametrize(('name', 'bands'), [('folder', 3), ('bands', 13), ('eurosat', 3), ('scenes', 4)])
def test_training_batches_carry_crops_and_normalised_images(name: str, bands: int, record: Record) -> None:
    datamodule = MODULES[name](views=VIEWS, batch_size=4)
    batches = record(datamodule, limit_train_batches=1, limit_val_batches=1)
    batch = batches['train'][0]
    assert [v.shape for v in batch['views']] == [(8, bands, 32, 32), (8, bands, 16, 16)]
    assert batch['image'].shape == (4, bands, 48, 48) and batch['image'].abs().mean() < 5
    assert all(v.abs().mean() < 5 for v in batch['views'])
    assert 'views' not in batches['val'][0]


def test_views_can_be_chosen_and_left_again_after_setup() -> None:
    datamodule = MODULES['folder'](batch_size=4)
    datamodule.setup('fit')
    image = torch.rand(4, 3, 48, 48) * 255
    assert set(datamodule.train_aug({'image': image})) == {'image'}
    datamodule.use_views(VIEWS)
    assert set(datamodule.train_aug({'image': image})) == {'image', 'views'}
    datamodule.use_views(None)
    assert set(datamodule.train_aug({'image': image})) == {'image'}


def test_images_of_a_batch_with_crops_are_not_cropped_themselves() -> None:
    datamodule = MODULES['folder'](batch_size=4, views=VIEWS)
    datamodule.setup('fit')
    image = torch.rand(4, 3, 48, 48) * 255
    assert torch.equal(
        datamodule.train_aug({'image': image})['image'], datamodule.aug({'image': image})['image']
    )
