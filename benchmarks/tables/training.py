"""Shared parts of training: a silent trainer that stops after its steps, and progress records."""

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader, Subset, default_collate

from explora_geo.datasets.files import evenly_spaced
from explora_geo.evaluation import extract_features, knn_accuracy
from explora_geo.models import ViT

from .meter import Meter


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's advice on loaders and loggers, and its device messages."""
    logging.getLogger('lightning.pytorch').setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


@dataclass
class Progress(Callback):
    """Callback that times steps with their crops and draws the learning curve of a resumable run."""

    score: Callable[[ViT], float] | None  # accuracy of a backbone; None draws no curve
    every: int  # steps between points
    seconds: list[float] = field(default_factory=list)  # time of each step except the first
    curve: list[tuple[int, float]] = field(default_factory=list)  # steps and accuracies
    before: float = 0.0  # seconds worked before an interruption
    _begun: float = field(default_factory=time.perf_counter)
    _last: float | None = None
    _step: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs."""
        return {
            'curve': [list(point) for point in self.curve],
            'seconds': self.seconds,
            'worked': self.before + time.perf_counter() - self._begun,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state."""
        self.curve = [(int(step), float(value)) for step, value in state_dict['curve']]
        self.seconds, self.before = list(state_dict['seconds']), state_dict['worked']

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Stop the clock of the previous step; this batch is loaded and cropped by now."""
        if trainer.global_step == self._step:
            return  # another accumulated batch
        self._step = trainer.global_step
        now = time.perf_counter()
        if self._last is not None:
            self.seconds.append(now - self._last)
        self._last = now
        if trainer.global_step == 0:
            self._point(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Add a point to the curve, outside the timed steps."""
        if trainer.global_step == self._step:
            return  # still accumulating batches
        if trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            self._point(trainer, pl_module)

    def _point(self, trainer: Trainer, pl_module: Any) -> None:
        if self.score is None:
            return
        start, training = time.perf_counter(), pl_module.training
        with torch.random.fork_rng():
            self.curve.append((trainer.global_step, self.score(pl_module.model.final_backbone)))
        pl_module.train(training)
        if self._last is not None:
            self._last += time.perf_counter() - start

    def costs(self, meter: Meter) -> dict[str, Any]:
        """Return seconds, energy and memory of the whole run; energy is unknown if it was interrupted."""
        whole = {'seconds': round(self.before + meter.seconds, 2), 'energy': None}
        return meter.to_dict() | (whole if self.before else {})


def curve_score(module: Any, count: int) -> Callable[[ViT], float] | None:
    """Return a k-NN accuracy function of a backbone with adapters, for learning curves."""
    train, other = module.train_dataset, module.val_dataset
    if not count or 'label' not in train[0]:
        return None
    other = module.test_dataset if other is None else other
    parts = [Subset(d, evenly_spaced(len(d), count)) for d in (train, other)]
    collate = getattr(module, 'collate_fn', default_collate)

    def score(vit: ViT) -> float:
        found: list[Any] = []
        device = vit.cls_token.device
        for part in parts:
            loader: Any = DataLoader(part, batch_size=64, collate_fn=collate)
            batches = (module.aug(move_data_to_device(batch, device)) for batch in loader if 'image' in batch)
            table = extract_features(vit, batches, blocks=1)
            found += [table.cls[:, 0].numpy(), table.label.numpy()]
        features, labels, others, expected = found
        return knn_accuracy(features, labels, others, expected, k=5)

    return score
