"""ExPLoRATask with the DINOv2 objective, in plain Lightning trainers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from explora_geo.datamodules import FolderDataModule
from explora_geo.models.heads import HeadConfig
from explora_geo.objectives import DINOv2
from explora_geo.trainers import ExPLoRATask
from explora_geo.transforms import ViewsConfig

Task = Callable[..., ExPLoRATask]
Data = Callable[..., FolderDataModule]
Run = Callable[..., Trainer]

HEAD = HeadConfig(prototypes=24, hidden_dim=16, bottleneck_dim=8)


@pytest.fixture
def build_dino(build_task: Task) -> Task:
    """Build an `ExPLoRATask` of 3 blocks and width 32 with a small DINOv2 objective."""

    def build(**kwargs: Any) -> ExPLoRATask:
        arguments = {'head': HEAD, 'head_warmup': 0, 'freeze_last_layer': 0}
        return build_task(**{'objective': partial(DINOv2, **arguments), **kwargs})

    return build


def test_a_folder_trains_and_is_watched(build_dino: Task, build_data: Data, build_trainer: Run) -> None:
    task, data = build_dino(), build_data()
    trainer = build_trainer(max_epochs=2)
    trainer.fit(task, datamodule=data)
    assert trainer.global_step == 6
    assert {'val_knn', 'val_knn_gain', 'train_teacher_entropy', 'train_loss_ibot'} <= set(
        trainer.callback_metrics
    )
    assert torch.isfinite(trainer.callback_metrics['train_loss'])
    assert data.views == task.model.views == ViewsConfig(global_size=32, local_size=16)


def test_the_datamodules_own_views_win(build_dino: Task, build_data: Data, build_trainer: Run) -> None:
    views = ViewsConfig(global_size=24, local_size=8, num_local=1)
    data = build_data(views=views)
    build_trainer(fast_dev_run=True).fit(build_dino(), datamodule=data)
    assert data.views == views


def test_batches_of_images_alone_are_enough(build_dino: Task, build_trainer: Run) -> None:
    loader = DataLoader([{'image': torch.randn(3, 32, 32)} for _ in range(8)], batch_size=4)
    trainer = build_trainer()
    trainer.fit(build_dino(), loader)
    assert trainer.global_step == 2 and torch.isfinite(trainer.callback_metrics['train_loss'])
