"""How the time of a step grows."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.ours import mae_step
from benchmarks.speed.scaling import ADAPTATION, flops, frames_step, groups_step, measure_scaling, tokens
from benchmarks.speed.scaling_report import slope
from benchmarks.speed.setting import Setting
from explora_geo._compat import unfuse_attention

DATA = Path(__file__).parents[2] / 'data'
SETTING = Setting(
    model='vit_tiny_patch16_224',
    batch=2,
    image_size=64,
    decoder_depth=1,
    precision='fp32',
    images=DATA / 'eurosat_rgb' / 'test',
    device='cpu',
)


def test_every_axis_is_measured_and_drawn(tmp_path: Path, small_names: None) -> None:
    axes = {'image size': (32, 64), 'batch': (1, 2), 'frames': (1, 3), 'channel groups': (1, 2)}
    report = measure_scaling(tmp_path, SETTING, DATA / 'eurosat_ms', 1, axes).read_text()
    found = json.loads((tmp_path / 'speed_scaling.jsonl').read_text())['axes']
    assert {axis: [p['tokens'] for p in points] for axis, points in found.items()} == {
        'image size': [4, 16],
        'batch': [16, 16],
        'frames': [16, 48],
        'channel groups': [16, 32],
    }
    first, last = found['batch']
    assert last['flops'] == 2 * first['flops']
    assert f'| 1 | 16 | {first["median"]:.3f} (' in report and '| 1.00 | 1.00 |' in report
    with Image.open(tmp_path / 'speed_scaling.png') as picture:
        assert picture.width > 3 * picture.height


def test_slots_are_tokens_of_real_images(small_names: None) -> None:
    series, groups = frames_step(SETTING, 3), groups_step(SETTING, 2, DATA / 'eurosat_ms')
    assert (tokens(series), tokens(groups)) == (48, 32)
    assert series() > 0 and groups() > 0
    with pytest.raises(ValueError, match='needed'):
        groups_step(replace(SETTING, batch=10_000), 1, DATA / 'eurosat_ms')


def test_operations_grow_as_they_are_counted() -> None:
    counted, computed = [], []
    for side in (64, 256):
        step = mae_step(replace(SETTING, batch=1, image_size=side), ADAPTATION)
        unfuse_attention(step.module)
        with FlopCounterMode(display=False) as counter:
            step()
        counted.append(counter.get_total_flops())
        computed.append(flops(step, 1))
    # Embedding, prediction and the weights that train are left out, and grow no faster than the blocks.
    assert computed[1] / computed[0] == pytest.approx(counted[1] / counted[0], rel=0.1)


def test_the_slope_is_the_exponent() -> None:
    assert slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert torch.tensor(slope([1], [3])).isnan()
