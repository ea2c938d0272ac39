"""Imports and adapter files against the clock."""

import json
from pathlib import Path

import torch

from benchmarks.speed.startup import COMMANDS, TORCH, build, time_startup
from explora_geo.adaptation import ExPLoRAConfig

WAITS = {TORCH: 0.2, 'import explora_geo': 0.6}


def test_processes_and_files_are_timed(tmp_path: Path, small_names: None) -> None:
    sleeping = {name: ('-c', f'import time; time.sleep({s})') for name, s in WAITS.items()}
    report = time_startup(tmp_path, 'vit_tiny_patch8_32', '[L]-r32', 1, sleeping).read_text()
    row = json.loads((tmp_path / 'speed_startup.jsonl').read_text())
    times = {name: t['median'] for name, t in row['times'].items()}
    assert all(times[name] > seconds for name, seconds in WAITS.items())
    beyond = times['import explora_geo'] - times[TORCH]
    assert f'| {beyond:+.2f} | - | below 1 s beyond torch |' in report
    whole, half = row['bytes'].values()
    assert 0.5 < half / whole < 0.6  # the header is as long in both
    assert 'hash of the frozen base, once a run' in times


def test_the_model_holds_numbers_and_the_commands_are_those_that_users_wait_for(small_names: None) -> None:
    vit = build('vit_tiny_patch8_32', ExPLoRAConfig.parse('[L]-r32'))
    assert all(
        torch.isfinite(t).all() and t.std() > 0.005 for t in vit.state_dict().values() if t.numel() > 9
    )
    assert {'import explora_geo', 'explora-geo --help'} < set(COMMANDS)
