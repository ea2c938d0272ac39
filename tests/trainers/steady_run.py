"""A small training run that tests kill, stop, fill the disk of, and share among processes."""

import json
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader

from explora_geo.datamodules import FolderDataModule, Statistics
from explora_geo.models import builders
from explora_geo.models.heads import HeadConfig
from explora_geo.objectives import MAE, DINOv2, PhaseConfig
from explora_geo.trainers import CropLink, ExPLoRATask, OptimConfig
from explora_geo.transforms import ViewsConfig

OBJECTIVES: dict[str, Any] = {
    'mae': partial(MAE, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2),
    'dinov2': partial(
        DINOv2,
        head=HeadConfig(12, 8, 4),
        views=ViewsConfig(global_size=16, local_size=8, num_local=1),
        phases=PhaseConfig(freeze_last_layer_fraction=0.2, head_warmup_fraction=0.1),
    ),
}


class Told(Callback):
    """Writes a line for each step, flushed, by which a test knows where the run is."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        print(json.dumps({'step': trainer.global_step}), flush=True)


def build(kind: str, size: tuple[int, int, int] = (16, 2, 2), **kwargs: Any) -> ExPLoRATask:
    """The task: two blocks of width 16 (or another width, depth and number of heads), all of it trained."""
    defaults: dict[str, Any] = {
        'model': 'vit_tiny_patch8_16',
        'adaptation': 'full',
        'objective': OBJECTIVES.get(kind),
        'optim': OptimConfig(base_lr=1e-3, lr_scaling='none', weight_decay=0.1, warmup_fraction=0.1),
        'preset': None,
        'drop_path_rate': 0.2,
        'monitor_features': 'none',
    }
    with patch.dict(builders._SIZES, tiny=size):
        return ExPLoRATask(**{**defaults, **kwargs})


def fit(
    folder: Path,
    objective: str,
    steps: int,
    workers: int = 0,
    seed: int = 3,
    every: int | None = 1,
    callbacks: Sequence[Callback] = (),
    loader: Callable[[FolderDataModule], DataLoader[Any]] | None = None,
    **kwargs: Any,
) -> ExPLoRATask:
    """Train, or go on.

    Args:
        folder: Where `tiles` lies and `run` is written.
        objective: `mae` or `dinov2`.
        steps: Optimizer steps of the whole run.
        workers: Processes that load data.
        seed: Seed of everything.
        every: Steps between checkpoints; none are written if None.
        callbacks: Further callbacks.
        loader: Makes a loader of training data that takes the place of the data module's.
        **kwargs: Other settings of the trainer.

    Returns:
        The task in its last state.
    """
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    seed_everything(seed, verbose=False)
    statistics = Statistics('imagenet', 'imagenet')
    tiles = {'root': folder / 'tiles', 'val_root': folder / 'tiles', 'statistics': statistics}
    data = FolderDataModule(**tiles, image_size=16, batch_size=4, num_workers=workers)  # type: ignore[arg-type]
    task = build(objective)
    keeper = [] if every is None else [ModelCheckpoint(folder / 'run', 'last', every_n_train_steps=every)]
    settings: dict[str, Any] = {
        'accelerator': 'cpu',
        'max_steps': steps,
        'logger': False,
        'enable_progress_bar': False,
        'enable_model_summary': False,
        'default_root_dir': folder / 'run',
        'limit_val_batches': 1,
        'check_val_every_n_epoch': 2,
        'callbacks': [Told(), CropLink(), *keeper, *callbacks],
        'enable_checkpointing': every is not None,
    }
    last = folder / 'run' / 'last.ckpt'
    trainer = Trainer(**{**settings, **kwargs})
    source: dict[str, Any] = {'datamodule': data}
    if loader is not None:
        data.setup('fit')
        source = {'train_dataloaders': loader(data)}
    trainer.fit(task, **source, ckpt_path=last if last.exists() else None)
    return task
