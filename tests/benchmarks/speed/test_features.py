"""Extraction of features beside forward passes."""

import json
from pathlib import Path

import pytest

from benchmarks.speed.features import FORWARD, compare_features


def test_extraction_is_compared_with_its_forward_passes(
    tmp_path: Path, tiles: Path, small_names: None
) -> None:
    report = compare_features(tmp_path, tiles, 'vit_tiny_patch8_32', 12, 1, batch=5).read_text()
    row = json.loads((tmp_path / 'speed_features.jsonl').read_text())
    times = {name: t['median'] for name, t in row['times'].items()}
    assert len(times) == 3 and all(0 < s < 60 for s in times.values())
    assert f'| {12 / times["extraction"]:,.1f} | {times[FORWARD] / times["extraction"]:.0%} |' in report
    assert '| 100% |' in report


def test_too_few_images_are_named(tmp_path: Path, tiles: Path, small_names: None) -> None:
    with pytest.raises(ValueError, match='holds 24 images, 25 are asked for'):
        compare_features(tmp_path, tiles, 'vit_tiny_patch8_32', 25, 1)
