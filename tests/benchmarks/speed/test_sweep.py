"""The timed sweep of linear probes."""

import json
from pathlib import Path

import pytest

from benchmarks.speed.sweep import time_sweep
from explora_geo.evaluation import SweepConfig

TILES = Path(__file__).parents[2] / 'data' / 'eurosat_rgb'


def test_the_sweep_is_timed_on_tokens_that_tell_classes_apart(tmp_path: Path) -> None:
    report = time_sweep(tmp_path, TILES, 16, SweepConfig(epochs=2, iterations=50)).read_text()
    row = json.loads((tmp_path / 'speed_sweep.jsonl').read_text())
    assert row['configurations'] == 28 and row['setting']['images'] == 3000
    assert row['accuracy'] > 0.2 and 0 < row['cpu_seconds'] < 60
    assert '| 16 | 3,000 | 28 | 100 x 256 |' in report


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='holds no class folders of JPEG images'):
        time_sweep(tmp_path, tmp_path, 16)
