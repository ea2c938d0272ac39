"""How long training waits for its images."""

import time
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.profilers import PassThroughProfiler


class LoaderClock(PassThroughProfiler):
    """Adds up the time that the training loop waits for its loader; times nothing else."""

    def __init__(self) -> None:
        """Initialize a LoaderClock."""
        super().__init__()
        self._started = 0.0
        self._waited = 0.0

    def start(self, action_name: str) -> None:
        """Start the clock when the loop asks for a batch."""
        if action_name.endswith('train_dataloader_next'):
            self._started = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Stop the clock when the batch is there."""
        if action_name.endswith('train_dataloader_next'):
            self._waited += time.perf_counter() - self._started

    def take(self) -> float:
        """Seconds waited since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited


def install_clock(trainer: Trainer) -> None:
    """Give a trainer the clock, unless it has a profiler of its own."""
    holder: Any = trainer  # its profiler is set without an annotation
    if type(holder.profiler) is PassThroughProfiler:
        holder.profiler = LoaderClock()
