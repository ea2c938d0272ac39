"""Short runs of a small task on real tiles."""

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

from explora_geo.datamodules import FolderDataModule
from explora_geo.objectives import MAE
from explora_geo.trainers import CropLink, ExPLoRATask, OptimConfig
from tests.conftest import TILES

OPTIM = OptimConfig(base_lr=0.02, lr_scaling='none', weight_decay=0.1, warmup_steps=0)


@pytest.fixture
def build_task(base_file: Path) -> Callable[..., ExPLoRATask]:
    """Build an `ExPLoRATask` of 3 blocks and width 32 whose base weights carry a decoder."""

    def build(**kwargs: Any) -> ExPLoRATask:
        defaults: dict[str, Any] = {
            'model': 'vit_tiny_patch8_32',
            'weights': str(base_file),
            'adaptation': '[L]-r4',
            'objective': partial(MAE, decoder_num_heads=2),
            'optim': OPTIM,
            'preset': None,
        }
        return ExPLoRATask(**{**defaults, **kwargs})

    return build


@pytest.fixture
def build_data(tiles: Path) -> Callable[..., FolderDataModule]:
    """Build the data module of 24 tiles, of which all are also validated on."""

    def build(**kwargs: Any) -> FolderDataModule:
        defaults: dict[str, Any] = {'root': tiles, 'val_root': tiles, 'image_size': 32, 'batch_size': 8}
        return FolderDataModule(**{**defaults, **kwargs})

    return build


@pytest.fixture
def build_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """Build a Lightning trainer of one epoch that writes to `run`, as the command line does."""

    def build(callbacks: Sequence[Callback] = (), **kwargs: Any) -> Trainer:
        defaults: dict[str, Any] = {
            'callbacks': [CropLink(), *callbacks],
            'num_sanity_val_steps': -1,
            'accelerator': 'cpu',
            'max_epochs': 1,
            'logger': False,
            'enable_checkpointing': False,
            'enable_progress_bar': False,
            'enable_model_summary': False,
            'default_root_dir': tmp_path / 'run',
        }
        return Trainer(**{**defaults, **kwargs})

    return build


@pytest.fixture
def steady_folder(tmp_path: Path) -> Path:
    """Eighteen tiles: four batches an epoch, and two tiles that each epoch leaves out."""
    for name, count in (('Forest', 10), ('River', 8)):
        (tmp_path / 'tiles' / name).mkdir(parents=True)
        for path in sorted((TILES / 'train' / name).glob('*.jpg'))[:count]:
            shutil.copy(path, tmp_path / 'tiles' / name)
    return tmp_path
