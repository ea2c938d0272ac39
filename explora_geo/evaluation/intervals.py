"""Intervals over seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """Mean and the half width of its 95 % interval."""

    mean: float
    half: float

    def __str__(self) -> str:
        """Text in per cent."""
        return f'{100 * self.mean:.1f} ± {100 * self.half:.1f}'


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's t interval of the mean.

    Args:
        values: One value per seed, at least two.
        confidence: Coverage in (0, 1).

    Returns:
        Mean and half width.

    Raises:
        ValueError: If there are fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f'an interval needs at least two seeds, got {len(values)}')
    factor = stats.t.ppf(0.5 + confidence / 2, len(values) - 1)
    return Interval(float(np.mean(values)), float(factor * stats.sem(values)))
