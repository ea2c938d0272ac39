"""What is watched while a run goes on: its speed, how good its features are, and whether they collapse."""

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
    """Times steps, and how long the loop waited for its loader: `waited`, seconds in all."""

    def __init__(self) -> None:
        """Initialize a StepClock that stands still."""
        self.waited = self._counted = 0.0
        self.pause()

    def pause(self) -> None:
        """Leave out the time until the next step."""
        self._last: float | None = None
        self._waiting: float | None = None

    def wait(self) -> None:
        """The loop asks for a batch from now on."""
        self._waiting = time.perf_counter()

    def go_on(self) -> None:
        """The batch is there."""
        if self._waiting is not None:
            self.waited += time.perf_counter() - self._waiting
        self._waiting = None

    def lap(self, images: int) -> dict[str, float]:
        """Note the end of a step: `images_per_s` and the share `data_wait`, or nothing of a first step."""
        now = time.perf_counter()
        seconds = None if self._last is None else now - self._last
        waited, self._counted, self._last = self.waited - self._counted, self.waited, now
        return {'images_per_s': images / seconds, 'data_wait': waited / seconds} if seconds else {}


@dataclass(frozen=True)
class GuardConfig:
    """When a run counts as collapsed; a bound of 0 never stops.

    Attributes:
        accuracy: Least k-NN or probe accuracy on labeled validation images, as a share of that of the
            starting weights.
        rank: Least effective rank of features, likewise: of validation images without labels, and of
            training crops where the objective has features of them.
        usage: Least evenness, in [0, 1], with which the objective's targets are used, where it has any.
        every: Optimizer steps between looks at training.
    """

    accuracy: float = 0.7
    rank: float = 0.25
    usage: float = 0.1
    every: int = 50

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ('accuracy', 'rank', 'usage'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'{name} of a guard must be in [0, 1], got {getattr(self, name)}')
        if self.every < 1:
            raise ValueError(f'every of a guard must be at least 1 step, got {self.every}')


class FeatureMonitor(Callback):
    """Scores features of validation images, and takes a run back whose features collapse.

    What trains is kept, on the CPU, as it was at the best accuracy, or without labels when it last looked
    sound; a run that is stopped leaves that state. The task has an objective as its `model`, `frozen_keys()`,
    validation steps that return features, and `stopped`, the sentence that ended it.
    """

    def __init__(self, kind: str, guard: GuardConfig | None = None) -> None:
        """Initialize a FeatureMonitor of a kind, `knn`, `linear` or `none`; without a guard nothing stops."""
        self.kind, self.guard = kind, guard
        self.starting: float | None = None  # accuracy of the starting weights, if known
        self.latest: float | None = None  # accuracy at the last validation, if labeled
        self.first: dict[str, float] = {}  # what is compared with the guard's bounds, as it was at the start
        self._kept: dict[str, Tensor] = {}
        self._kept_step = self._rows = 0
        self._best, self._resumed = float('-inf'), False
        self.reset()

    def state_dict(self) -> dict[str, Any]:
        """What the starting weights had, for a run that is resumed."""
        return {'starting': self.starting, 'first': dict(self.first), 'rows': self._rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Read it back."""
        self.starting, self.first = state_dict['starting'], dict(state_dict['first'])
        self._rows, self._resumed = state_dict['rows'], True

    def reset(self) -> None:
        """Forget the collected features."""
        self._features: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []

    def add(self, features: Tensor, batch: Mapping[str, Any]) -> None:
        """Collect features, shape (B, D), and the labels of a batch if it has one class per image."""
        self._features.append(features.float().cpu().numpy())
        label: Any = batch.get('label')
        whole = isinstance(label, Tensor) and label.ndim == 1 and not label.is_floating_point()
        if whole and (label >= 0).all():  # below 0 means without a label
            self._labels.append(label.cpu().numpy())

    def score(self) -> float | None:
        """Mean accuracy over five folds in [0, 1]; None without enough labels."""
        if not self._labels or len(self._labels) < len(self._features):
            return None
        features, labels = np.concatenate(self._features), np.concatenate(self._labels)
        return cross_validated_accuracy(features, labels, self.kind)

    def rank(self) -> float | None:
        """Effective rank of the features; None without any."""
        return effective_rank(np.concatenate(self._features)) if self._features else None

    def _gather(self, sampler: object) -> None:
        """Bring together what all processes of a `DistributedSampler` collected, in the order of the data."""
        if not (dist.is_initialized() and isinstance(sampler, DistributedSampler)):
            return
        shares: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(shares, (self._features, self._labels))
        features, labels = ([part for share in shares for part in share[kind]] for kind in (0, 1))
        # Samplers deal images in turn, and repeat some to give all processes as many.
        dealt = [i + len(shares) * np.arange(sum(map(len, share[0]))) for i, share in enumerate(shares)]
        data: Any = sampler.dataset
        order = np.argsort(np.concatenate(dealt))[: len(data)]
        self._features = [np.concatenate(features)[order]] if features else []
        labeled = sum(map(len, labels)) == sum(map(len, features)) != 0
        self._labels = [np.concatenate(labels)[order]] if labeled else []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what there is at the start."""
        if self.guard is not None:
            self._keep(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the features of the validation before."""
        self.reset()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Collect features."""
        if self.kind != 'none':
            self.add(outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the features of all processes; a whole check before training scores the starting weights."""
        self._gather(getattr(trainer.val_dataloaders, 'sampler', None))
        score = self.latest = self.score()
        rank = self.rank() if score is None else None
        if trainer.sanity_checking:  # which Lightning may do to a resumed run, too
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
        """Look at the state that a batch was computed with; at first it is that of the starting weights."""
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
            # The rank of fewer rows is lower whatever they hold, as in the last batch of an epoch.
            enough = len(features) >= self._rows
            rank = effective_rank(features.float().cpu())
            sound = self._compare(trainer, pl_module, name, rank, config.rank * enough) and sound
            # A labeled validation set judges better.
            if sound and enough and self.latest is None:
                self._keep(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take a collapsed run back to what was kept."""
        if pl_module.stopped:
            pl_module.load_state_dict({**pl_module.state_dict(), **self._kept})

    def _compare(self, trainer: Trainer, task: Any, name: str, value: float, share: float) -> bool:
        """Whether a number is at least a share of what the starting weights have."""
        start = self.first.setdefault(name, value)
        what = f'their {name} is {value:.3g}, with the starting weights {start:.3g}'
        return self._judge(trainer, task, value >= share * start, what)

    def _judge(self, trainer: Trainer, task: Any, sound: bool, what: str) -> bool:
        """Stop the run, on all devices, if any device sees a collapse."""
        sound = trainer.strategy.reduce_boolean_decision(sound, all=True)
        if not sound and not task.stopped:
            task.stopped = (
                f'the features collapsed at step {trainer.global_step}: {what}; the run is stopped and what '
                f'was learned by step {self._kept_step} is kept: lower optim.base_lr, raise '
                'losses.koleo_weight or lengthen phases.head_warmup_steps'
            )
            logger.warning(task.stopped)
            trainer.should_stop = True
        return sound

    def _keep(self, trainer: Trainer, task: Any) -> None:
        """Copy what trains to the CPU."""
        frozen, state = set(task.frozen_keys()), task.state_dict()
        self._kept = {k: v.detach().cpu().clone() for k, v in state.items() if k not in frozen}
        self._kept_step = trainer.global_step
