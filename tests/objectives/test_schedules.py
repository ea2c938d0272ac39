"""Schedules of an objective."""

import math

import pytest

from explora_geo.objectives.schedules import Length, TrainingLength


@pytest.mark.parametrize(
    ('name', 'value', 'steps'),
    [
        ('rest_steps', 0, 0),
        ('rest_steps', 1250, 1250),
        ('rest_epochs', 0.5, 5),
        ('rest_epochs', 30, 300),  # as asked for, though the run is shorter
        ('rest_fraction', 0.25, 25),
        ('rest_fraction', 1, 100),
    ],
)
def test_a_phase_lasts_as_long_as_its_unit_says(name: str, value: float, steps: int) -> None:
    assert TrainingLength(100, 10).steps(Length(name, value)) == steps


def test_epochs_without_an_end_are_refused() -> None:
    with pytest.raises(
        ValueError, match='rest_epochs is 1, but epochs of this data have no end: use rest_steps'
    ):
        TrainingLength(100, math.inf).steps(Length('rest_epochs', 1))
    assert TrainingLength(100, math.inf).steps(Length('rest_epochs', 0)) == 0


def test_the_momentum_rises_as_a_cosine_and_stays() -> None:
    horizon = TrainingLength(101, 10)
    assert horizon.cosine(0, 0.992, 1) == pytest.approx(0.992)
    assert horizon.cosine(50, 0.992, 1) == pytest.approx(0.996)
    assert horizon.cosine(25, 0, 1) == pytest.approx((1 - math.cos(math.pi / 4)) / 2)
    assert horizon.cosine(100, 0.992, 1) == horizon.cosine(500, 0.992, 1) == 1


def test_the_temperature_rises_linearly() -> None:
    horizon, epochs = TrainingLength(100, 10), Length('rise_epochs', 3)
    assert horizon.linear_warmup(0, 0.04, 0.07, epochs) == pytest.approx(0.04)
    assert horizon.linear_warmup(15, 0.04, 0.07, epochs) == pytest.approx(0.055)
    assert (
        horizon.linear_warmup(30, 0.04, 0.07, epochs) == horizon.linear_warmup(99, 0.04, 0.07, epochs) == 0.07
    )
    assert horizon.linear_warmup(0, 0.04, 0.07, Length('rise_steps', 0)) == 0.07


def test_a_run_of_one_step_has_schedules() -> None:
    assert (
        TrainingLength(1, 1).cosine(0, 0.9, 1) == 1
        and TrainingLength(1, 1).linear_warmup(0, 0.04, 0.07, Length('rise_fraction', 0.3)) == 0.07
    )
