"""What reports of all runs share: when they are written, the clock and the numbers of every epoch."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


def note_skipped(skipped: dict[str, str], batch: Mapping[str, Any]) -> None:
    """Remember tiles that the loader could not read; the report names them.

    Args:
        skipped: Reason by path, added to.
        batch: Sample dict, perhaps with `skipped`, a list of `<path>: <reason>`.
    """
    for entry in batch.get('skipped', ()):
        path, _, reason = entry.partition(': ')
        skipped.setdefault(path, reason)


class RunReport(Callback, ABC):
    """Writes what a run leaves behind when it ends or is stopped."""

    def __init__(self) -> None:
        """Initialize a RunReport."""
        self.history: list[dict[str, float]] = []
        self._start = 0.0

    @property
    def seconds(self) -> float:
        """Seconds since training started."""
        return round(time.perf_counter() - self._start, 1)

    @staticmethod
    def wanted(trainer: Trainer) -> bool:
        """Whether this process writes files; a trial (`fast_dev_run`) leaves none."""
        trial: Any = trainer.fast_dev_run  # type: ignore[attr-defined]
        return trainer.is_global_zero and not trial

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the epoch's numbers for the report."""
        row = {k: round(float(v), 6) for k, v in trainer.callback_metrics.items()}
        self.history.append({'epoch': trainer.current_epoch, 'step': trainer.global_step, **row})

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files."""
        if self.wanted(trainer):
            self.write(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep what a stopped run has learnt."""
        if trainer.global_step and self.wanted(trainer):
            self.write(trainer, pl_module)

    @abstractmethod
    def write(self, trainer: Trainer, task: Any) -> Path:
        """Write report and weights to the run's folder, which is returned."""
