"""What `explora-geo adapt` refuses, and runs that are cut off."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import yaml
from rasterio.errors import NotGeoreferencedWarning

from explora_geo import cli
from explora_geo.checkpoints import model_metadata, read_adapter, write_state
from explora_geo.cli import main
from explora_geo.models import create_vit

ROOT = Path(__file__).parents[1]
TILES = ROOT / 'tests' / 'data' / 'eurosat_rgb' / 'train'
DEPTH6 = 'ViTSmall14_Weights.LVD142M_DINOV2_DEPTH6'
TINY = 'ViTTiny8_Weights.TINY_IMAGENET_MAE'
ADAPTER = ROOT / 'explora_geo' / 'models' / 'files' / 'vit_small_patch14_dinov2_depth6_eurosat.safetensors'


@pytest.fixture(scope='module')
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Archives of all kinds: `tiles` in three class folders, and those that cannot be used."""
    root = tmp_path_factory.mktemp('archives')
    for name in ('Forest', 'River', 'SeaLake'):
        (root / 'tiles' / name).mkdir(parents=True)
        for file in sorted((TILES / name).iterdir())[:8]:
            shutil.copy(file, root / 'tiles' / name)
    shutil.copytree(root / 'tiles', root / 'few')
    for file in sorted((root / 'few' / 'River').iterdir())[2:]:
        file.unlink()
    (root / 'empty').mkdir()
    write(root / 'mixed', [3, 4] * 3)
    write(root / 'small', [3] * 4, side=6)
    write(root / 'flat', [3] * 4)
    write(root / 'two', [3] * 2)
    write(root / 'unnamed', [5] * 4)
    (root / 'damaged.safetensors').write_bytes(b'no weights')
    return root


def write(folder: Path, bands: Sequence[int], side: int = 64) -> None:
    """GeoTIFFs of random pixels."""
    folder.mkdir()
    for number, count in enumerate(bands):
        size: dict[str, Any] = {'count': count, 'height': side, 'width': side, 'dtype': 'uint8'}
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            with rasterio.open(folder / f'{number}.tif', 'w', driver='GTiff', **size) as target:
                target.write(np.random.randint(0, 255, (count, side, side), dtype='uint8'))


@pytest.mark.parametrize(
    ('archive', 'options', 'message'),
    [
        ('none', [], 'the archive {}/none does not exist'),
        ('empty', [], '{}/empty contains no images'),
        ('two', [], '{}/two has 2 images: use at least 3'),
        ('mixed', [], '{}/mixed mixes files with 3 bands'),
        ('small', [], '6 x 6 pixels, smaller than a patch of 14 x 14'),
        ('unnamed', [], 'assign names by band number, such as bands=red=1,green=2,blue=3'),
        ('tiles', ['--labels', '{}/flat'], 'labeled tiles in {}/flat must be in at least two class folders'),
        (
            'tiles',
            ['--labels', '{}/few'],
            'labeled tiles in {}/few must include at least 3 per class, for training, validation and '
            'testing, got 2 of River',
        ),
        ('tiles', ['--labels', '{}/none'], 'labels folder not found: {}/none; it needs a folder for each'),
        ('tiles', ['--retention', '{}/flat'], '{}/flat must be in at least two class folders'),
        (
            'tiles',
            ['--weights', 'timm/vit_small_patch14_dinov2.lvd142m'],
            f'shipped weights: --weights {DEPTH6}',
        ),
        ('tiles', ['--weights', '{}/none.safetensors'], 'weights file not found: {}/none.safetensors'),
        ('tiles', ['--weights', '{}/damaged.safetensors'], 'damaged.safetensors is damaged or not'),
        ('tiles', ['--adaptation', 'M-ExPLoRA-[L]-r4'], 'was not pre-trained by masked autoencoding'),
        ('tiles', ['--weights', TINY, '--adaptation', 'D-ExPLoRA-[L]-r4'], 'was pre-trained by masked auto'),
        ('tiles', ['--adaptation', 'anchor-[9]-r4'], 'block 9 does not exist'),
        ('tiles', ['--adaptation', 'D-ExPLoRA-r4'], 'D-ExPLoRA-r4'),
        ('tiles', ['--minutes', '0'], 'minutes must be positive and finite, got 0'),
        ('tiles', ['--steps', '-1'], 'steps must be positive and finite, got -1'),
        ('tiles', ['--minutes', '1', '--epochs', '1'], 'pass only one of --minutes, --steps and --epochs'),
        ('tiles', ['--strength', '2'], 'strength must be auto or between 0 (the source) and 1 '),
        (
            'tiles',
            ['--strength', 'much'],
            'strength must be auto or between 0 (the source) and 1 (the full adapter), got much',
        ),
        (
            'tiles',
            ['--beside', str(ADAPTER)],
            'beside needs labels to score the adapter on: pass labels, too',
        ),
        (
            'tiles',
            ['--beside', str(ADAPTER), '--labels', '{}/tiles', '--weights', TINY],
            'was made for vit_small_patch14_dinov2_depth6',
        ),
        ('tiles', ['--config', '{}/none.yaml'], 'configuration file not found: {}/none.yaml'),
        ('tiles', ['--out', '{}/flat/0.tif'], '{}/flat/0.tif is a file: choose a folder with --out'),
        ('tiles', ['--out', '{}/flat'], '{}/flat contains other files: choose another folder with --out'),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    archives: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    archive: str,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.setenv('HF_HOME', str(tmp_path / 'hub'))
    before = sorted(archives.rglob('*'))
    args = ['adapt', str(archives / archive), '--out', str(tmp_path / 'run'), '--weights', DEPTH6]
    with pytest.raises(SystemExit) as stop:
        main([*args, *(o.format(archives) for o in options)])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message.format(archives) in ' '.join(error.split())
    assert len(error.strip().splitlines()) == 1 and error.startswith('error: ')
    assert not (tmp_path / 'run').exists() and sorted(archives.rglob('*')) == before


@pytest.fixture
def small(small_names: None, tmp_path: Path) -> Path:
    """A small random backbone in a file that says what it is."""
    vit = create_vit('vit_tiny_patch8_32')
    write_state(tmp_path / 'source.safetensors', vit.state_dict(), model_metadata(vit, 'vit_tiny_patch8_32'))
    return tmp_path / 'source.safetensors'


@pytest.mark.slow
@pytest.mark.parametrize('room', [100, 12_000, 60_000])
def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(
    archives: Path, tmp_path: Path, small: Path, capsys: pytest.CaptureFixture[str], room: int
) -> None:
    run = tmp_path / 'run'
    command = ['adapt', str(archives / 'tiles'), '--weights', str(small), '--steps', '2', '--out', str(run)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(SystemExit) as stop:
            main(command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith('error: no space left to write ') and str(run) in error
    assert error.endswith('make room and rerun to resume') and error.count('rerun') == 1
    assert not (run / 'adapter.safetensors').exists() and not (run / 'report.html').exists()
    for file in run.rglob('*.safetensors'):
        read_adapter(file)
    assert not list(run.rglob('.*'))
    with pytest.raises(SystemExit, match='0'):
        main(command)
    assert (run / 'report.html').is_file()


@pytest.mark.group(name='kills')
def test_a_run_that_is_stopped_by_ctrl_c_says_how_to_go_on_and_does(
    archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / 'run'
    keeper = {'dirpath': str(run / 'run'), 'save_last': True, 'save_top_k': 0, 'every_n_train_steps': 1}
    callback = {'class_path': 'lightning.pytorch.callbacks.ModelCheckpoint', 'init_args': keeper}
    config = tmp_path / 'every.yaml'
    few = {'init_args': {'batch_size': 8}}
    trainer = {'callbacks': [callback], 'precision': '32-true'}
    config.write_text(yaml.safe_dump({'trainer': trainer, 'data': few}))
    command = ['adapt', str(archives / 'tiles'), '--weights', TINY, '--adaptation', 'M-ExPLoRA-[L]-r4']
    command += ['--steps', '30', '--config', str(config), '--out', str(run)]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, '-m', 'explora_geo', *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    end = time.monotonic() + 120
    while not (run / 'run' / 'last.ckpt').exists():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[0]
    assert process.returncode not in (0, 2) and 'Traceback' not in said
    assert f'Stopped. Repeat the command to resume from {run}/run/last.ckpt.' in ' '.join(said.split())
    done = torch.load(run / 'run' / 'last.ckpt', weights_only=True)['global_step']
    assert 1 <= done < 30 and not (run / 'report.html').exists()
    capsys.readouterr()
    with pytest.raises(SystemExit, match='0'):
        main(command)
    assert capsys.readouterr().out.splitlines()[-1] == str(run / 'report.html')
    report = json.loads((run / 'report.json').read_text())
    assert report['adaptation']['steps'] == 30 and report['curves'][0]['x'] == list(range(30))


@pytest.mark.parametrize(
    ('environment', 'terminal', 'platform', 'expected'),
    [
        ({'DISPLAY': ':0'}, True, 'linux', True),
        ({'WAYLAND_DISPLAY': 'wayland-0'}, True, 'linux', True),
        ({}, True, 'darwin', True),
        ({}, True, 'linux', False),
        ({'DISPLAY': ':0'}, False, 'linux', False),
        ({'DISPLAY': ':0', 'CI': 'true'}, True, 'linux', False),
        ({'SSH_CONNECTION': '10.0.0.1'}, True, 'darwin', False),
    ],
)
def test_the_page_opens_where_somebody_sits_before_a_desktop(
    environment: dict[str, str], terminal: bool, platform: str, expected: bool
) -> None:
    assert cli.opens(environment, terminal, platform) == expected


def test_a_browser_of_the_terminal_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = tmp_path / 'shown'
    script = tmp_path / 'browser'
    script.write_text(f'#!/bin/sh\necho "$1" >> {shown}\n')
    script.chmod(0o755)
    desktop, terminal = (
        kind(str(script)) for kind in (webbrowser.BackgroundBrowser, webbrowser.GenericBrowser)
    )
    for browser in (desktop, terminal):
        monkeypatch.setattr(webbrowser, 'get', lambda browser=browser: browser)
        cli._open(tmp_path / 'report.html')
    end = time.monotonic() + 10
    while not (shown.exists() and shown.read_text().endswith('\n')) and time.monotonic() < end:
        time.sleep(0.01)
    assert shown.read_text() == f'{(tmp_path / "report.html").as_uri()}\n'
