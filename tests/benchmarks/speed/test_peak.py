"""Peak memory of training steps."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.speed.engine import compare_peaks
from benchmarks.speed.setting import Setting

SETTING = Setting(
    model='vit_small_patch16_224',
    batch=1,
    image_size=112,
    decoder_depth=1,
    precision='fp32',
    images=Path(__file__).parents[2] / 'data' / 'eurosat_rgb' / 'test',
    device='cpu',
)


@pytest.mark.group(name='long')
def test_training_less_and_frozen_weights_in_bfloat16_need_less_memory(tmp_path: Path) -> None:
    setting = replace(SETTING, precision='bf16')
    report = compare_peaks(tmp_path, 'mae', setting, only='^explora_geo, all|frozen in bf16').read_text()
    row = json.loads((tmp_path / 'speed' / 'peak.jsonl').read_text())
    gigabytes = row['columns']['GB']
    (full,) = (1e9 * n for name, n in gigabytes.items() if 'all weights' in name)
    (lean,) = (1e9 * n for name, n in gigabytes.items() if 'frozen in bf16' in name)
    ours = 1e9 * next(iter(gigabytes.values()))
    # 22 M weights that train have a gradient and two averages, of four bytes each.
    assert 0.15e9 < full - ours < 0.6e9
    # Two of six bytes stay, of eleven of twelve blocks of width 384, and the decoder's of width 512.
    assert ours - lean == pytest.approx(4 * 12 * (11 * 384**2 + 512**2), rel=0.4)
    assert f'| {ours / 1e9:.3g} | {100 * ours / full:.3g} |' in report
    assert f'| {full / 1e9:.3g} | 100 |' in report


def test_a_compiler_is_no_part_of_a_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='measure compiled steps on a GPU'):
        compare_peaks(tmp_path, 'mae', SETTING, compiled=True)


def test_an_unknown_objective_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='objective must be one of'):
        compare_peaks(tmp_path, 'simclr', SETTING)
