"""Schedules of an objective."""

import math

import pytest

from explora_geo.objectives.schedules import Horizon


@pytest.mark.parametrize(
    ('length', 'steps'), [(0, 0), (0.25, 25), (1, 10), (3, 30), (30, 50), (0.999, 99)], ids=str
)
def test_a_phase_is_a_share_of_the_run_or_epochs_of_at_most_half_of_it(length: float, steps: int) -> None:
    assert Horizon(100, 10).steps(length) == steps


def test_half_of_the_run_is_taken_where_an_epoch_has_no_end() -> None:
    assert Horizon(100, math.inf).steps(1) == 50


def test_the_momentum_rises_as_a_cosine_and_stays() -> None:
    horizon = Horizon(101, 10)
    assert horizon.cosine(0, 0.992, 1) == pytest.approx(0.992)
    assert horizon.cosine(50, 0.992, 1) == pytest.approx(0.996)
    assert horizon.cosine(25, 0, 1) == pytest.approx((1 - math.cos(math.pi / 4)) / 2)
    assert horizon.cosine(100, 0.992, 1) == horizon.cosine(500, 0.992, 1) == 1


def test_the_temperature_rises_linearly() -> None:
    horizon = Horizon(100, 10)
    assert horizon.rise(0, 0.04, 0.07, 3) == pytest.approx(0.04)
    assert horizon.rise(15, 0.04, 0.07, 3) == pytest.approx(0.055)
    assert horizon.rise(30, 0.04, 0.07, 3) == horizon.rise(99, 0.04, 0.07, 3) == 0.07
    assert horizon.rise(0, 0.04, 0.07, 0) == 0.07


def test_a_run_of_one_step_has_schedules() -> None:
    assert Horizon(1, 1).cosine(0, 0.9, 1) == 1 and Horizon(1, 1).rise(0, 0.04, 0.07, 0.3) == 0.07
