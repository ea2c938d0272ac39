"""Steps of several processes that average their gradients."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.speed.ours import mae_step
from benchmarks.speed.processes import compare_processes
from benchmarks.speed.setting import Setting
from explora_geo.models.heads import HeadConfig

SETTING = Setting(
    model='vit_tiny_patch16_224',
    batch=1,
    image_size=64,
    local_size=32,
    num_local=1,
    decoder_depth=1,
    head=HeadConfig(64, 32, 16),
    precision='fp32',
    images=Path(__file__).parents[2] / 'data' / 'eurosat_rgb' / 'test',
    device='cpu',
)


@pytest.mark.group(name='long')
@pytest.mark.parametrize('objective', ['mae', 'dinov2'])
def test_two_processes_step_together_and_reduce_what_trains(tmp_path: Path, objective: str) -> None:
    setting = replace(SETTING, batch=2)
    report = compare_processes(tmp_path, objective, setting, repeats=1).read_text()
    row = json.loads((tmp_path / 'speed_processes.jsonl').read_text())
    one, two = (row['times'][n]['median'] for n in '12')
    assert 0 < row['reduced'] < row['model']
    assert f'{2 * one / two:.2f} |' in report and f'{4 / two:.2f} | ' in report


def test_what_is_called_may_be_wrapped() -> None:
    called = []

    def wrap(objective: object) -> object:
        called.append(objective)
        return lambda batch, step: objective(batch, step)  # type: ignore[operator]

    step = mae_step(SETTING, '[L]-r32', wrap=wrap)
    assert step() > 0 and called == [step.module]


def test_an_unknown_objective_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='objective must be one of'):
        compare_processes(tmp_path, 'simclr', SETTING)
