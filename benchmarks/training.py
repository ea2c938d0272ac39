"""Short adaptations on images in memory, with the loss on held-out ones along the way."""

import logging
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from matplotlib.axes import Axes
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from explora_geo.models import ViTTiny8_Weights
from explora_geo.objectives import MAE
from explora_geo.trainers import ExPLoRATask, OptimConfig
from explora_geo.trainers.kernels import faster_precision

BACKBONE = 'vit_tiny_patch8_64'
SOURCE = ViTTiny8_Weights.TINY_IMAGENET_MAE
Batch = dict[str, Tensor]


class HeldOutLoss(Callback):
    """Keeps the training loss and, every few steps, the loss on held-out images with one set of masks."""

    def __init__(self, batch: Batch, every: int) -> None:
        """Initialize a HeldOutLoss.

        Args:
            batch: Normalised held-out images.
            every: Steps between two measurements.
        """
        self.batch, self.every = batch, every
        self.train: list[float] = []
        self.held_out: list[tuple[int, float]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the starting weights."""
        self._measure(pl_module, 0)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Keep the loss, and measure when it is time."""
        self.train.append(float(trainer.callback_metrics['train_loss']))
        if trainer.global_step % self.every == 0:
            self._measure(pl_module, trainer.global_step)

    @torch.no_grad()
    def _measure(self, task: Any, step: int) -> None:
        task.eval()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            with torch.autocast(task.device.type, torch.bfloat16):
                loss = task.model(self.batch, step)['loss_mae']
            self.held_out.append((step, float(loss)))
        task.train()


def build_task(
    tokenizer: Literal['patch', 'group-channel', 'temporal'], adaptation: str, lr: float, **kwargs: Any
) -> ExPLoRATask:
    """The shipped source model with a tokenizer, adapted, and its decoder."""
    options = {k: kwargs.pop(k) for k in ('shared_across_slots',) if k in kwargs}
    return ExPLoRATask(
        BACKBONE,
        weights=SOURCE,
        adaptation=adaptation,
        objective=partial(MAE, decoder_embed_dim=128, decoder_num_heads=4, **options),
        optim=OptimConfig(base_lr=lr, lr_scaling='none', warmup_fraction=0.1),
        preset=None,
        learned_position=False,
        monitor_features='none',
        tokenizer=tokenizer,
        **kwargs,
    )


def fit(
    task: ExPLoRATask,
    samples: list[Batch],
    view: Callable[[Batch], Batch],
    held_out: Batch,
    steps: int,
    batch_size: int,
    seed: int,
) -> HeldOutLoss:
    """Train a task on samples in memory.

    Args:
        task: What trains, in place.
        samples: Sample dicts in units of the files.
        view: Augments and normalises a batch.
        held_out: Normalised held-out batch.
        steps: Optimiser steps.
        batch_size: Samples per step.
        seed: Seed of order, crops and masks.

    Returns:
        The losses.
    """
    logging.getLogger('lightning.pytorch').setLevel(logging.ERROR)
    seed_everything(seed, verbose=False)
    losses = HeldOutLoss(held_out, every=max(1, steps // 5))
    loader: Any = DataLoader(
        samples,  # type: ignore[arg-type]
        batch_size,
        shuffle=True,
        drop_last=len(samples) > batch_size,
        collate_fn=lambda chosen: view(default_collate(chosen)),
    )
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Lightning's advice on loaders and loggers
        trainer = Trainer(
            max_steps=steps,
            accelerator='auto',
            devices=1,
            default_root_dir=Path(folder),
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            precision=faster_precision(),
            gradient_clip_val=3.0,
            callbacks=[losses],
        )
        trainer.fit(task, loader)
    task.cpu().eval()
    return losses


def plot_losses(axis: Axes, runs: dict[str, list[HeldOutLoss]]) -> None:
    """Held-out loss by step: a line for each run, those of one name in one colour."""
    for i, (name, repeats) in enumerate(runs.items()):
        for k, losses in enumerate(repeats):
            steps, values = zip(*losses.held_out, strict=True)
            axis.plot(steps, values, color=f'C{i}', label=name if k == 0 else None)
    axis.set_xlabel('step')
    axis.set_ylabel('loss on held-out images')
    axis.spines[['top', 'right']].set_visible(False)
    axis.legend(frameon=False)
