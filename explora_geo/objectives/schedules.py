"""Schedules of an objective by optimiser step."""

from typing import NamedTuple

from lightly.utils.scheduler import cosine_schedule


class Horizon(NamedTuple):
    """How long training is.

    Attributes:
        total: Optimiser steps of the whole run.
        epoch: Optimiser steps per epoch.
    """

    total: int = 1
    epoch: float = 1.0

    def steps(self, length: float) -> int:
        """Optimiser steps of a phase.

        Args:
            length: Share of the run if below 1, else epochs, of which at most half of the run is taken.
        """
        if length < 1:
            return int(length * self.total)
        return int(min(length * self.epoch, self.total // 2))  # epochs may have no end

    def cosine(self, step: int, start: float, end: float) -> float:
        """Half a cosine from `start` to `end` over the run."""
        return float(cosine_schedule(min(step, self.total), self.total, start, end))

    def rise(self, step: int, start: float, end: float, length: float) -> float:
        """Linear from `start` to `end` over a phase, then `end`."""
        steps = self.steps(length)
        return end if step >= steps else start + (end - start) * step / steps
