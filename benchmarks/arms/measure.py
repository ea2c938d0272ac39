"""Accuracy, time and the learning curve of one arm."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader, Subset

from explora_geo.datamodules import FolderDataModule
from explora_geo.datasets import FolderDataset
from explora_geo.demo.tiles import draw_labels, split_by_class
from explora_geo.evaluation import (
    Budget,
    FeatureTable,
    ProbeProtocol,
    extract_features,
    knn_accuracy,
    run_probes,
)
from explora_geo.models import ViT

from .config import Setting


@dataclass
class StepTimer(Callback):
    """Times optimiser steps with their crops, and draws the learning curve in between.

    Attributes:
        score: Accuracy of a backbone.
        every: Steps between points.
        seconds: Time of each step but the first.
        curve: Steps and accuracies.
    """

    score: Callable[[ViT], float]
    every: int
    seconds: list[float] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)
    _last: float | None = None
    _step: int | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Close the step before; its loading and crops are done by now."""
        if trainer.global_step == self._step:
            return  # a further one of the batches that are accumulated
        self._step = trainer.global_step
        now = time.perf_counter()
        if self._last is not None:
            self.seconds.append(now - self._last)
        self._last = now
        if trainer.global_step == 0:
            self._point(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add a point to the curve, outside of the clock."""
        if trainer.global_step == self._step:
            return  # the optimiser waits for further batches
        if trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            self._point(trainer, pl_module)

    def _point(self, trainer: Trainer, pl_module: Any) -> None:
        start = time.perf_counter()
        training = pl_module.training
        with torch.random.fork_rng():
            self.curve.append((trainer.global_step, self.score(pl_module.model.final_backbone)))
        pl_module.train(training)
        if self._last is not None:
            self._last += time.perf_counter() - start


class Images:
    """The images of a setting: a data module to learn from, and labelled parts to measure with."""

    def __init__(self, setting: Setting, batch_size: int) -> None:
        """Read the folders, and divide the labelled images by class.

        Args:
            setting: What arms share.
            batch_size: Images per step.
        """
        self.setting = setting
        self.module = FolderDataModule(
            setting.train,
            image_size=setting.image_size,
            batch_size=batch_size,
            mean=setting.mean,
            std=setting.std,
            vertical_flip=True,
            cache=True,
        )
        self.module.setup('fit')
        self.labelled = FolderDataset(setting.train, labelled=True, strict=True, size=setting.image_size)
        self.test = FolderDataset(setting.test, labelled=True, strict=True, size=setting.image_size)
        label = torch.tensor(self.labelled.labels)
        chosen = draw_labels(label, setting.labels or len(label), 0)
        first, held = (chosen[part] for part in split_by_class(label[chosen], 0.75))
        self.parts = {'train': first, 'val': held}
        few = first[draw_labels(label[first], 25, 0)]
        self.curve = {'train': few, 'val': held[draw_labels(label[held], 50, 0)]}

    def table(self, vit: ViT, dataset: FolderDataset, index: torch.Tensor | None = None) -> FeatureTable:
        """Features of the last block."""
        chosen: Any = dataset if index is None else Subset(dataset, index.tolist())
        loader = DataLoader(chosen, batch_size=64, collate_fn=self.module.collate_fn)
        features, label = extract_features(vit, (self.module.aug(batch) for batch in loader), blocks=1)
        cls, avg = (torch.from_numpy(features[kind]) for kind in ('cls', 'avg'))
        return FeatureTable(cls, avg, torch.from_numpy(label))

    def knn(self, vit: ViT) -> float:
        """Accuracy of k-NN with 25 labels a class on held-out training images, for curves."""
        tables = [self.table(vit, self.labelled, self.curve[name]) for name in ('train', 'val')]
        (x, y), (other, truth) = ((t.arrays()['cls'], t.label.numpy()) for t in tables)
        return knn_accuracy(x, y, other, truth, k=5)

    def scores(self, vit: ViT) -> dict[str, float]:
        """Test accuracy by method and label budget."""
        train, val = (self.table(vit, self.labelled, self.parts[name]) for name in ('train', 'val'))
        protocol = ProbeProtocol(
            budgets=tuple(Budget.parse(text) for text in self.setting.budgets),
            seeds=self.setting.label_seeds,
            methods=('logistic', 'knn'),
        )
        found = run_probes(train, val, self.table(vit, self.test), protocol, self.labelled.classes)
        return {f'{s.method}, {s.budget}': s.mean for s in found.scores}
