"""Intervals over seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
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


def bootstrap_interval(
    hits: NDArray[np.bool_] | Sequence[NDArray[np.bool_]],
    confidence: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean accuracy, over seeds and test images.

    Both are drawn with replacement: a few seeds alone would give too narrow an interval.

    Args:
        hits: Whether each test image is right under each seed, shape (seeds, M).
        confidence: Coverage in (0, 1).
        draws: Bootstrap samples.
        seed: Seed of the draws.

    Returns:
        Lower and upper end in [0, 1].

    Raises:
        ValueError: If there is no seed or no image.
    """
    table = np.atleast_2d(np.asarray(hits)).astype(np.float32)
    if table.size == 0:
        raise ValueError('a bootstrap interval needs at least one seed and one test image')
    generator = np.random.default_rng(seed)
    seeds, images = table.shape
    means = [
        table[generator.integers(seeds, size=seeds)].mean(0)[generator.integers(images, size=images)].mean()
        for _ in range(draws)
    ]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
