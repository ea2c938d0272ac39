"""Monitor training speed and feature quality, and stop on feature collapse."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DistributedSampler

from explora_geo.evaluation.label_free import effective_rank
from explora_geo.evaluation.probes import cross_validated_accuracy

logger = logging.getLogger(__name__)


class StepClock:
    """Timer for training steps and for loader waits, whose total is `waited`, in seconds."""

    def __init__(self) -> None:
        """Initialize a stopped StepClock."""
        self.waited = self._counted = 0.0
        self.pause()

    def pause(self) -> None:
        """Exclude the time until the next step."""
        self._last: float | None = None
        self._waiting: float | None = None

    def wait(self) -> None:
        """Start timing the wait for a batch."""
        self._waiting = time.perf_counter()

    def go_on(self) -> None:
        """Stop timing the wait: the batch has arrived."""
        if self._waiting is not None:
            self.waited += time.perf_counter() - self._waiting
        self._waiting = None

    def lap(self, images: int) -> dict[str, float]:
        """End a step; return `images_per_s` and the share `data_wait`, or nothing for the first step."""
        now = time.perf_counter()
        seconds = None if self._last is None else now - self._last
        waited, self._counted, self._last = self.waited - self._counted, self.waited, now
        return {'images_per_s': images / seconds, 'data_wait': waited / seconds} if seconds else {}


@dataclass(frozen=True)
class GuardConfig:
    """Bounds below which a run counts as collapsed; a bound of 0 never stops it.

    Attributes:
        accuracy: Minimum k-NN or probe accuracy on labeled validation images, as a fraction of the accuracy
            of the starting weights.
        rank: Minimum effective rank of the features, as a fraction of the rank at the start: on unlabeled
            validation images, and on training crops if the objective provides their features.
        usage: Minimum evenness of target usage, in [0, 1], for objectives that report it.
        every: Optimizer steps between checks during training.
    """

    accuracy: float = 0.7
    rank: float = 0.25
    usage: float = 0.1
    every: int = 50

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ('accuracy', 'rank', 'usage'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'guard.{name} must be in [0, 1], got {getattr(self, name)}')
        if self.every < 1:
            raise ValueError(f'guard.every must be at least 1 step, got {self.every}')


class FeatureMonitor(Callback):
    """Callback that scores validation features, stops on collapse and restores the best state.

    Everything not frozen is copied to the CPU at the best accuracy or, without labels, at the last passed
    check; a stopped run ends with that copy. The task must provide an objective as its `model`,
    `frozen_keys()`, validation steps that return features, and `stopped`, which takes the reason to stop.
    """

    def __init__(self, kind: str, guard: GuardConfig | None = None) -> None:
        """Initialize a FeatureMonitor of kind `knn`, `linear` or `none`; without a guard it stops nothing."""
        self.kind, self.guard = kind, guard
        self.starting: float | None = None  # accuracy of the starting weights, if known
        self.latest: float | None = None  # accuracy at the last validation, if labeled
        self.first: dict[str, float] = {}  # guarded metrics, as they were at the start
        self._kept: dict[str, Tensor] = {}
        self._kept_step = self._rows = 0
        self._best, self._resumed = float('-inf'), False
        self.reset()

    def state_dict(self) -> dict[str, Any]:
        """Return the metrics of the starting weights, for a resumed run."""
        return {'starting': self.starting, 'first': dict(self.first), 'rows': self._rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the metrics of the starting weights."""
        self.starting, self.first = state_dict['starting'], dict(state_dict['first'])
        self._rows, self._resumed = state_dict['rows'], True

    def reset(self) -> None:
        """Clear the collected features."""
        self._features: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []

    def add(self, features: Tensor, batch: Mapping[str, Any]) -> None:
        """Collect features, shape (B, D), and the batch's labels if it has one class per image."""
        self._features.append(features.float().cpu().numpy())
        label: Any = batch.get('label')
        whole = isinstance(label, Tensor) and label.ndim == 1 and not label.is_floating_point()
        if whole and (label >= 0).all():  # negative means unlabeled
            self._labels.append(label.cpu().numpy())

    def score(self) -> float | None:
        """Return the mean accuracy over five folds, in [0, 1], or None without enough labels."""
        if not self._labels or len(self._labels) < len(self._features):
            return None
        features, labels = np.concatenate(self._features), np.concatenate(self._labels)
        return cross_validated_accuracy(features, labels, self.kind)

    def rank(self) -> float | None:
        """Return the effective rank of the features, or None if there are none."""
        return effective_rank(np.concatenate(self._features)) if self._features else None

    def _gather(self, sampler: object) -> None:
        """Gather what all processes of a `DistributedSampler` collected, in dataset order."""
        if not (dist.is_initialized() and isinstance(sampler, DistributedSampler)):
            return
        shares: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(shares, (self._features, self._labels))
        features, labels = ([part for share in shares for part in share[kind]] for kind in (0, 1))
        # Samplers assign images in turn, and repeat some so that all processes get equally many.
        dealt = [i + len(shares) * np.arange(sum(map(len, share[0]))) for i, share in enumerate(shares)]
        data: Any = sampler.dataset
        order = np.argsort(np.concatenate(dealt))[: len(data)]
        self._features = [np.concatenate(features)[order]] if features else []
        labeled = sum(map(len, labels)) == sum(map(len, features)) != 0
        self._labels = [np.concatenate(labels)[order]] if labeled else []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the starting state."""
        if self.guard is not None:
            self._keep(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the features of the previous validation."""
        self.reset()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Collect features."""
        if self.kind != 'none':
            self.add(outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the features of all processes; a full check before training scores the starting weights."""
        self._gather(getattr(trainer.val_dataloaders, 'sampler', None))
        score = self.latest = self.score()
        rank = self.rank() if score is None else None
        if trainer.sanity_checking:  # Lightning may check resumed runs, too
            if sum(trainer.num_sanity_val_batches) < sum(trainer.num_val_batches):
                return
            self.starting = self.starting if self._resumed else score
        elif score is not None:
            pl_module.log(f'val_{self.kind}', score, prog_bar=True)
            if self.starting is not None:
                pl_module.log(f'val_{self.kind}_gain', score - self.starting)
        elif rank is not None:
            pl_module.log('val_rank', rank)
        if self.guard is None:
            return
        sound = False
        if score is not None:
            name = {'knn': 'k-NN accuracy', 'linear': 'linear-probe accuracy'}[self.kind]
            sound = (
                self._compare(trainer, pl_module, name, score, self.guard.accuracy) and score >= self._best
            )
            self._best = score if sound else self._best
        elif rank is not None:
            name = 'effective rank of validation features'
            sound = self._compare(trainer, pl_module, name, rank, self.guard.rank)
        if sound:
            self._keep(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        """Check the state that computed this batch; the first check sees the starting weights."""
        name, model, config = 'effective rank of training features', pl_module.model, self.guard
        features, usage = model.watched, model.usage
        if config is None or ((trainer.global_step + 1) % config.every and name in self.first):
            return
        sound = True
        if usage is not None:
            what = f'all images get nearly the same target (usage {float(usage):.2g})'
            sound = self._judge(trainer, pl_module, float(usage) >= config.usage, what)
        if features is not None:
            self._rows = self._rows or len(features)
            # Fewer rows, as in the last batch of an epoch, have a lower rank whatever they hold.
            enough = len(features) >= self._rows
            rank = effective_rank(features.float().cpu())
            sound = self._compare(trainer, pl_module, name, rank, config.rank * enough) and sound
            # A labeled validation set is the better judge.
            if sound and enough and self.latest is None:
                self._keep(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the kept state after a collapse."""
        if pl_module.stopped:
            pl_module.load_state_dict({**pl_module.state_dict(), **self._kept})

    def _compare(self, trainer: Trainer, task: Any, name: str, value: float, share: float) -> bool:
        """Judge whether a value reaches the required fraction of its starting value."""
        start = self.first.setdefault(name, value)
        what = f'{name} is {value:.3g}, compared with {start:.3g} for the starting weights'
        return self._judge(trainer, task, value >= share * start, what)

    def _judge(self, trainer: Trainer, task: Any, sound: bool, what: str) -> bool:
        """Stop the run on all devices if any device sees a collapse; return whether all are sound."""
        sound = trainer.strategy.reduce_boolean_decision(sound, all=True)
        if not sound and not task.stopped:
            task.stopped = (
                f'the features collapsed at step {trainer.global_step}: {what}; the run stops and keeps the '
                f'weights of step {self._kept_step}: lower optim.base_lr, raise losses.koleo_weight or '
                'increase phases.head_warmup_steps'
            )
            logger.warning(task.stopped)
            trainer.should_stop = True
        return sound

    def _keep(self, trainer: Trainer, task: Any) -> None:
        """Copy everything that is not frozen to the CPU."""
        frozen, state = set(task.frozen_keys()), task.state_dict()
        self._kept = {k: v.detach().cpu().clone() for k, v in state.items() if k not in frozen}
        self._kept_step = trainer.global_step
