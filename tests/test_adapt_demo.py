"""`make demo`: one command for the weights that ship and for those of timm's hub, in so many operations."""

import base64
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from explora_geo import _adapt_report, _adapt_speed
from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.cli import main
from explora_geo.datamodules.archive import LabeledTiles, look
from explora_geo.models import create_vit
from explora_geo.objectives import Anchor
from explora_geo.reports.pictures import MANY, patch_maps

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


def small(command: list[str], tmp_path: Path) -> list[str]:
    """The same command on a few tiles, for a single step."""
    for name in ('Forest', 'River', 'SeaLake'):
        (tmp_path / 'tiles' / name).mkdir(parents=True)
        for file in sorted((ROOT / 'tests/data/eurosat_rgb/train' / name).iterdir())[:4]:
            shutil.copy(file, tmp_path / 'tiles' / name)
    changed = list(command)
    changed[1] = str(tmp_path / 'tiles')
    for name, value in (('--labels', changed[1]), ('--out', str(tmp_path / 'run')), ('--steps', '1')):
        changed[command.index(name) + 1] = value
    return changed


@pytest.mark.slow
def test_the_page_has_three_columns_and_rivals_quoted_with_their_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match='0'):
        main(small(demo(), tmp_path))
    report = json.loads((tmp_path / 'run' / 'report.json').read_text())
    page = (tmp_path / 'run' / 'report.html').read_text()
    assert all(row['beside']['gain'] and row['best_block'] for row in report['scores']['rows'])
    assert 'turns_source' in report['quoted']['rows'][0]
    assert report['adaptation']['short'] and report['adaptation']['strength'] == 1
    assert report['verdict']['text'].startswith('The ready-made adapter ')
    assert 'This short run' in page and report['quoted']['command'] in page
    assert 'explora-geo adapt YOUR_TILES' in report['next'][0]
    sides = [
        Image.open(io.BytesIO(base64.b64decode(uri))).size
        for uri in re.findall(r'class="pixels" src="data:image/png;base64,([^"]+)"', page)
    ]
    assert len(sides) == 3 * 8 and min(min(side) for side in sides) >= 14


def count(work: Callable[[], Any]) -> float:
    """Floating-point operations of matrix products and attention, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_the_demonstration_takes_25_teraflop_at_most() -> None:
    command, name = demo(), 'vit_small_patch14_dinov2_depth6'
    found = look(ROOT / command[1], patch_size=14)
    labeled = LabeledTiles(ROOT / option(command, '--labels'), found)
    source = create_vit(name, img_size=found.image_size)
    images = torch.randn(2, 3, found.image_size, found.image_size)
    with torch.no_grad():
        forward = count(lambda: source(images)) / 2
        enlarged = count(lambda: patch_maps(source, images)) / 2
    student = create_vit(name, img_size=found.image_size)
    objective = Anchor(explora(student, ExPLoRAConfig.parse('[L]-r32'))).train()
    batch = found.settings['init_args']['batch_size']
    trained = count(lambda: torch.stack([*objective({'image': images}, 0).values()]).sum().backward()) / 2
    backbones, sample = 3, _adapt_report.SAMPLE
    live = (int(option(command, '--steps')) + _adapt_speed.TIMED + 1) * batch * trained
    scored = backbones * len(labeled) * forward
    pictured = backbones * (sample * forward + MANY * enlarged)
    label_free = 2 * 3 * sample * forward  # two backbones, a tile and two crops
    assert 20e12 < live + scored + pictured + label_free <= 25e12


@pytest.mark.group(name='commands')
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
    command = demo(f'WEIGHTS=timm/{HUB}')
    environment = {
        **os.environ,
        'HF_HOME': str(tmp_path / 'home'),
        'HF_HUB_OFFLINE': '1',
        'PYTHONPATH': str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, '-m', 'explora_geo', *small(command, tmp_path)],
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
