"""`make demo`: one command for the weights that ship and for those of timm's hub, in so many operations."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[1]
HUB = 'vit_small_patch14_dinov2.lvd142m'


def demo(*variables: str) -> list[str]:
    """Arguments of `explora-geo` in `make demo`."""
    done = subprocess.run(
        ['make', '--dry-run', '--old-file=.venv/bin/.installed', 'demo', *variables],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    text = done.stdout.replace('\\\n', ' ')
    line = next(line for line in text.splitlines() if 'explora-geo adapt' in line)
    words = shlex.split(line.lstrip('@'))
    assert words[0].endswith('bin/explora-geo')
    return words[1:]


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_the_demonstration_adapts_what_ships_beside_an_adapter_made_beforehand() -> None:
    command = demo()
    assert option(command, '--weights') == 'ViTSmall14_Weights.LVD142M_DINOV2_DEPTH6'
    assert (ROOT / option(command, '--beside')).is_file()
    assert '--beside' not in demo('WEIGHTS=timm/x') and '--quick' in command


@pytest.mark.slow
def test_the_whole_network_of_timms_hub_goes_through_the_same_command(tmp_path: Path) -> None:
    # A cache as the hub's client lays it out; weights are random.
    cache = tmp_path / 'home' / 'hub' / f'models--timm--{HUB}'
    revision = 40 * 'a'
    for folder in ('blobs', 'refs', f'snapshots/{revision}'):
        (cache / folder).mkdir(parents=True)
    (cache / 'refs' / 'main').write_text(revision)
    state = timm.create_model(HUB, pretrained=False, num_classes=0).state_dict()
    assert sum(v.numel() for v in state.values()) == 22_056_192
    save_file(state, cache / 'blobs' / 'weights')
    (cache / 'snapshots' / revision / 'model.safetensors').symlink_to(cache / 'blobs' / 'weights')
    for name in ('Forest', 'River', 'SeaLake'):
        (tmp_path / 'tiles' / name).mkdir(parents=True)
        for file in sorted((ROOT / 'tests/data/eurosat_rgb/train' / name).iterdir())[:4]:
            shutil.copy(file, tmp_path / 'tiles' / name)
    command = demo(f'WEIGHTS=timm/{HUB}')
    tiles = str(tmp_path / 'tiles')
    places = {'tests/data/eurosat_rgb/train': tiles, option(command, '--labels'): tiles}
    places |= {option(command, '--out'): str(tmp_path / 'run'), option(command, '--steps'): '1'}
    environment = {
        **os.environ,
        'HF_HOME': str(tmp_path / 'home'),
        'HF_HUB_OFFLINE': '1',
        'PYTHONPATH': str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, '-m', 'explora_geo', *(places.get(word, word) for word in command)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / 'run' / 'report.json').read_text())
    assert report['model']['weights'] == f'timm/{HUB}' and report['model']['parameters'] > 21_000_000
    assert report['adaptation']['image_size'] == 112 and report['scores']['rows']
    assert done.stdout.splitlines()[-1] == str(tmp_path / 'run' / 'report.html')
    assert torch.load(tmp_path / 'run' / 'run' / 'last.ckpt', weights_only=True)['global_step'] == 1
