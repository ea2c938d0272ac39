"""Intervals over seeds."""

import numpy as np
import pytest

from explora_geo.evaluation import bootstrap_interval, mean_interval


def test_the_interval_is_students() -> None:
    interval = mean_interval([0.70, 0.72, 0.74])
    # t(0.975, 2) = 4.302653, standard error 0.02 / sqrt(3).
    assert interval == pytest.approx((0.72, 4.302653 * 0.02 / 3**0.5), rel=1e-5)
    assert str(interval) == '72.0 ± 5.0'


def test_95_per_cent_of_the_intervals_hold_the_mean() -> None:
    draws = np.random.default_rng(0).normal(size=(1500, 5))
    hits = [abs(i.mean) <= i.half for i in map(mean_interval, draws)]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.02)


def test_one_seed_has_no_interval() -> None:
    with pytest.raises(ValueError, match='at least two seeds, got 1'):
        mean_interval([0.5])


def test_the_bootstrap_agrees_with_the_binomial_interval_for_one_seed() -> None:
    hits = np.random.default_rng(0).random((1, 400)) < 0.8
    low, high = bootstrap_interval(hits)
    half = 1.96 * (hits.mean() * (1 - hits.mean()) / 400) ** 0.5
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert low < hits.mean() < high


def test_the_bootstrap_sees_both_seeds_and_images() -> None:
    generator = np.random.default_rng(1)
    images = generator.random((4, 300)) < 0.7
    seeds = generator.random((4, 300)) < np.array([[0.5], [0.6], [0.8], [0.9]])
    widths = [np.ptp(bootstrap_interval(h)) for h in (images, seeds)]
    assert widths[1] > 1.5 * widths[0]
    assert bootstrap_interval(images) == bootstrap_interval(images)


def test_nothing_has_no_bootstrap() -> None:
    with pytest.raises(ValueError, match='at least one seed and one test image'):
        bootstrap_interval(np.zeros((0, 5), dtype=bool))
