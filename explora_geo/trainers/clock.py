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


class StepClock:
    """Times optimizer steps, and the share of them in which the loop waited for its loader."""

    def __init__(self) -> None:
        """Initialize a StepClock that stands still."""
        self._last: float | None = None

    def pause(self) -> None:
        """Leave out the time until the next step."""
        self._last = None

    def lap(self, trainer: Trainer, size: int) -> dict[str, float]:
        """Note the end of a step.

        Args:
            trainer: The trainer, with a `LoaderClock` or without.
            size: Images of the step in this process.

        Returns:
            `images_per_s` of all processes and the share `data_wait`, as far as they are known.
        """
        profiler: Any = getattr(trainer, 'profiler', None)
        waited = profiler.take() if isinstance(profiler, LoaderClock) else None
        now = time.perf_counter()
        last, self._last = self._last, now
        if last is None:
            return {}
        found = {'images_per_s': size * trainer.world_size / (now - last)}
        return found if waited is None else {**found, 'data_wait': waited / (now - last)}


def install_clock(trainer: Trainer) -> None:
    """Give a trainer the clock, unless it has a profiler of its own."""
    holder: Any = trainer  # its profiler is set without an annotation
    if type(holder.profiler) is PassThroughProfiler:
        holder.profiler = LoaderClock()
