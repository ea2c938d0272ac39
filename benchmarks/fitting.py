"""What fits of the benchmarks share: a silent trainer that ends after its steps, and draws of labels."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import Subset

from explora_geo.evaluation import Budget
from explora_geo.trainers import CropLink


def build_trainer(
    folder: str | Path,
    steps: int,
    callbacks: Sequence[Callback] = (),
    save: Path | None = None,
    every: int = 0,
    **options: Any,
) -> Trainer:
    """A trainer without logger, bars and validation.

    Args:
        folder: What runs leave behind goes there.
        steps: Optimiser steps; -1 if `options` give epochs.
        callbacks: Further callbacks.
        save: Checkpoint that is written anew every few steps, to go on from.
        every: Optimiser steps between them; a whole run, and so no checkpoint, if 0.
        **options: Further arguments of the trainer.

    Returns:
        The trainer.
    """
    saving: list[Callback] = []
    if save is not None and 0 < every < steps:
        saving = [
            ModelCheckpoint(
                save.parent,
                save.stem,
                every_n_train_steps=every,
                save_on_train_epoch_end=False,
                enable_version_counter=False,
            )
        ]
    return Trainer(
        max_steps=steps,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=bool(saving),
        enable_model_summary=False,
        enable_progress_bar=False,
        limit_val_batches=0,
        callbacks=[CropLink(), *callbacks, *saving],
        **options,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out Lightning's advice on loaders and loggers, and its lines on devices."""
    logging.getLogger('lightning.pytorch').setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


def labels_of(dataset: Any) -> torch.Tensor | None:
    """Classes of a data set that knows them without reading images, shape (N,), else None."""
    if isinstance(dataset, Subset):
        found = labels_of(dataset.dataset)
        return None if found is None else found[torch.tensor(list(dataset.indices), dtype=torch.long)]
    labels = getattr(dataset, 'labels', None)
    if labels is None and 'label' in getattr(dataset, 'table', ()):
        labels = dataset.table['label'].to_list()
    return None if labels is None else torch.as_tensor(labels)


def draw_training_labels(data: Any, labels: str, seed: int) -> int:
    """Leave a data module only a draw of its training images.

    Args:
        data: Data module that is set up; changed in place.
        labels: Label budget.
        seed: Seed of the draw.

    Returns:
        Number of training images that are left.

    Raises:
        ValueError: If the labels are not known without reading every image.
    """
    dataset, budget = data.train_dataset, Budget.parse(labels)
    if budget.full:
        return len(dataset)
    known = labels_of(dataset)
    if known is None:
        raise ValueError(f'{type(dataset).__name__} does not list its labels: use the label budget all')
    data.train_dataset = Subset(dataset, budget.draw(known, seed).tolist())
    return len(data.train_dataset)
