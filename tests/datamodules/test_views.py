"""Every data module makes several crops of an image where it is told to."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from explora_geo.datamodules import Augment, EuroSATDataModule, FolderDataModule, SceneDataModule, base
from explora_geo.datamodules.base import TileDataModule
from explora_geo.datasets.eurosat import MS_BANDS
from explora_geo.transforms import ViewsConfig

Record = Callable[..., dict[str, list[dict[str, Any]]]]
DATA = Path(__file__).parents[1] / 'data'
VIEWS = ViewsConfig(global_size=32, local_size=16, num_local=2)
MODULES: dict[str, Callable[..., TileDataModule]] = {
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
    datamodule = MODULES[name](augment=Augment(views=VIEWS), batch_size=4)
    batches = record(datamodule, limit_train_batches=1, limit_val_batches=1)
    batch = batches['train'][0]
    assert [v.shape for v in batch['views']] == [(8, bands, 32, 32), (8, bands, 16, 16)]
    assert batch['image'].shape == (4, bands, 48, 48) and batch['image'].abs().mean() < 5
    assert all(v.abs().mean() < 5 for v in batch['views'])
    assert 'views' not in batches['val'][0]


@pytest.mark.parametrize('setup_first', [False, True])
def test_views_can_be_chosen_before_and_after_setup(setup_first: bool) -> None:
    datamodule = MODULES['folder'](batch_size=4)
    image = torch.rand(4, 3, 48, 48) * 255
    if setup_first:
        datamodule.setup('fit')
        assert set(datamodule.train_aug({'image': image})) == {'image'}
    datamodule.use_views(VIEWS)
    datamodule.setup('fit')
    assert set(datamodule.train_aug({'image': image})) == {'image', 'views'}


def test_images_of_a_batch_with_crops_are_not_cropped_themselves() -> None:
    datamodule = MODULES['folder'](batch_size=4, augment=Augment(views=VIEWS))
    datamodule.setup('fit')
    image = torch.rand(4, 3, 48, 48) * 255
    assert torch.equal(
        datamodule.train_aug({'image': image})['image'], datamodule.aug({'image': image})['image']
    )


@pytest.mark.parametrize(
    ('name', 'options', 'expected'),
    [
        ('eurosat', {}, (True, True)),
        ('scenes', {}, (True, True)),
        ('folder', {}, (False, False)),  # what a folder holds is not known
        ('folder', {'vertical_flip': True, 'quarter_turns': True}, (True, True)),
        ('folder', {'quarter_turns': True}, (False, True)),
    ],
)
@pytest.mark.parametrize('told', [False, True])
def test_images_from_above_have_crops_in_all_orientations_unless_views_say_otherwise(
    name: str,
    options: dict[str, Any],
    expected: tuple[bool, bool],
    told: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[ViewsConfig] = []
    monkeypatch.setattr(base, 'training_views', lambda views, *_: seen.append(views))
    datamodule = MODULES[name](batch_size=4, augment=Augment(**options))
    datamodule.use_views(replace(VIEWS, vertical_flip=False, quarter_turns=False) if told else VIEWS)
    datamodule.setup('fit')
    assert (seen[-1].vertical_flip, seen[-1].quarter_turns) == ((False, False) if told else expected)
