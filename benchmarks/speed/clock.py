"""Steps in turns, so that whatever slows the machine slows all of them."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

Step = Callable[[], object]


class Times(NamedTuple):
    """Seconds of a step.

    Attributes:
        median: Median over the repeats.
        low: Fastest repeat.
        high: Slowest repeat.
    """

    median: float
    low: float
    high: float

    def text(self, digits: int = 3) -> str:
        """For a table: `median (low-high)`."""
        median, low, high = (f'{seconds:.{digits}f}' for seconds in self)
        return f'{median} ({low}-{high})'


def spread(values: Sequence[float]) -> Times:
    """Median, lowest and highest of measurements."""
    return Times(statistics.median(values), min(values), max(values))


def alternate(
    steps: Mapping[str, Step], repeats: int, warmup: int = 1, clock: Callable[[], float] | None = None
) -> dict[str, Times]:
    """Time steps in turns: every round takes one of each, in an order of its own.

    A step finds caches and memory as the one before left them, which must not always be the same one.

    Args:
        steps: Callables by name.
        repeats: Rounds that count.
        warmup: Rounds before them.
        clock: Source of seconds; wall time if None.

    Returns:
        Times by name.

    Raises:
        ValueError: If there is no round to count.
    """
    if repeats < 1:
        raise ValueError(f'repeats must be at least 1, got {repeats}')
    now, order = clock or time.perf_counter, random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(warmup + repeats):
        for name in order.sample(sorted(steps), len(steps)):
            wait()
            start = now()
            steps[name]()
            wait()
            if turn >= warmup:
                seconds[name].append(now() - start)
    return {n: spread(s) for n, s in seconds.items()}


def wait() -> None:
    """Wait for what the GPU was given to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
