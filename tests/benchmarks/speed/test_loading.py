"""The share of waiting in short trainings."""

import json
from pathlib import Path

import pytest

from benchmarks.speed.loading import StepClock, measure_loading


def test_what_is_waited_in_the_first_steps_does_not_count() -> None:
    clock = StepClock()
    clock.ends, clock.waits = [9.0, 10.0, 12.0, 14.0], [9.0, 0.9, 0.1, 0.3]
    assert clock.share(2) == pytest.approx(0.1) and clock.seconds(2) == 2.0


def test_trainings_with_and_without_workers_are_compared(tmp_path: Path, tiles: Path) -> None:
    report = measure_loading(tmp_path, 'mae', tiles, 2, 1, (0,), warmup=1, batch_size=4).read_text()
    row = json.loads((tmp_path / 'speed_loading.jsonl').read_text())
    share, seconds = row['waits']['0']['median'], row['seconds']['0']['median']
    assert 0 < share < 1 and 0 < seconds < 60 and row['setting']['batch'] == 4
    assert row['default_workers'] == 0
    assert f'| 0 (default) | {share:.1%} (' in report
    assert ('met |' in report) == (share < 0.05)


def test_an_unknown_objective_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='objective must be one of mae, dinov2'):
        measure_loading(tmp_path, 'simclr', tmp_path, 1, 1)
