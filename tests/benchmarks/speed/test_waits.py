"""Extraction of features, and the share of waiting in short trainings."""

import json
from pathlib import Path

import pytest

from benchmarks.speed.waits import features, loading


def test_extraction_is_compared_with_its_forward_passes(
    tmp_path: Path, tiles: Path, small_names: None, capsys: pytest.CaptureFixture[str]
) -> None:
    features(tiles, 'vit_tiny_patch8_32', 12, batch=5, repeats=1, out=tmp_path)
    row = json.loads((tmp_path / 'speed' / 'features.jsonl').read_text())
    times = {name: t['median'] for name, t in row['times'].items()}
    assert len(times) == 3 and all(0 < s < 60 for s in times.values())
    ratio = times['extraction'] / times['forward passes alone']
    report = capsys.readouterr().out
    assert f'| {ratio:.2f} |' in report and '| 1.00 |' in report
    assert row['columns']['images/s']['extraction'] == pytest.approx(12 / times['extraction'])
    with pytest.raises(ValueError, match='holds 24 images, 25 are asked for'):
        features(tiles, 'vit_tiny_patch8_32', 25, repeats=1, out=tmp_path)


def test_trainings_wait_for_images(tmp_path: Path, tiles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loading(tiles, 'mae', 2, [0], 4, 1, tmp_path)
    row = json.loads((tmp_path / 'speed' / 'loading.jsonl').read_text())
    assert 0 < row['columns']['waits, %']['0 workers'] < 100 and row['columns']['images/s']['0 workers'] > 0
    assert '| 0 workers |' in capsys.readouterr().out
    with pytest.raises(ValueError, match='objective must be one of mae, dinov2'):
        loading(tiles, 'simclr', out=tmp_path)
