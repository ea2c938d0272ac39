"""What a run notes while it trains, in its checkpoints too: time of steps, learning curve."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader, Subset, default_collate

from explora_geo.datasets.files import evenly_spaced
from explora_geo.evaluation import extract_features, knn_accuracy
from explora_geo.models import ViT

from .carbon import Energy
from .meter import Meter

#: Times of steps that a checkpoint keeps: enough for their median.
_KEPT = 200


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


@dataclass
class Progress(StepTimer):
    """Times steps and draws the learning curve of a run that may be stopped and resumed.

    Attributes:
        drawn: Whether a learning curve is drawn.
        before: Seconds that the run worked before it was stopped.
        resumed: Steps at which it was resumed.
    """

    drawn: bool = True
    before: float = 0.0
    resumed: list[int] = field(default_factory=list)
    _begun: float = field(default_factory=time.perf_counter)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {
            'curve': [list(point) for point in self.curve],
            'seconds': self.seconds[-_KEPT:],
            'worked': self.before + time.perf_counter() - self._begun,
            'resumed': list(self.resumed),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Read it back."""
        self.curve = [(int(step), float(value)) for step, value in state_dict['curve']]
        self.seconds, self.before = list(state_dict['seconds']), state_dict['worked']
        self.resumed = list(state_dict['resumed'])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where the run goes on."""
        if trainer.global_step:
            self.resumed.append(trainer.global_step)

    def _point(self, trainer: Trainer, pl_module: Any) -> None:
        if self.drawn:
            super()._point(trainer, pl_module)

    def costs(self, meter: Meter) -> dict[str, Any]:
        """Seconds, energy and memory of the whole run, also of what was done before it was stopped.

        The energy of that part is taken to be used at the same rate.
        """
        found = meter.to_dict()
        if self.before and meter.seconds:
            share = (self.before + meter.seconds) / meter.seconds
            energy = Energy(**found['energy'])
            found['seconds'] = round(self.before + meter.seconds, 2)
            scaled = energy._replace(kwh=energy.kwh * share, kg=energy.kg * share)
            found['energy'] = scaled._replace(
                method=f'{energy.method}; scaled to the part before a stop'
            )._asdict()
        return {**found, 'resumed': self.resumed}


class CurveScore:
    """k-NN accuracy on some images of training and validation, for learning curves."""

    def __init__(self, module: Any, count: int) -> None:
        """Choose the images.

        Args:
            module: Data module that is set up.
            count: Images to learn from, and as many to score.
        """
        self.module = module
        train, other = module.train_dataset, module.val_dataset
        if other is None:
            other = module.test_dataset
        self.parts = [Subset(d, evenly_spaced(len(d), count)) for d in (train, other)]
        self.known = 'label' in train[0]

    def __call__(self, vit: ViT) -> float:
        """Accuracy of a backbone with its adapters in place."""
        collate = getattr(self.module, 'collate_fn', default_collate)
        found = []
        device = vit.cls_token.device
        for part in self.parts:
            loader: Any = DataLoader(part, batch_size=64, collate_fn=collate)
            batches = (self.module.aug(_move(batch, device)) for batch in loader)
            features, labels = extract_features(vit, batches, blocks=1)
            found.append((features['cls'][:, 0], labels))
        (x, y), (other, truth) = found
        return knn_accuracy(x, y, other, truth, k=5)


def _move(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
