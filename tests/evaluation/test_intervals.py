"""Intervals over seeds."""

import numpy as np
import pytest

from explora_geo.evaluation import mean_interval


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
