"""Weights, adapters, checkpoints and configurations from anywhere: no code of theirs runs, in any command."""

import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from tests.data.broken.data import plain, raster

Refuse = Callable[..., str]
CONF = Path(__file__).parents[1] / 'conf'
MODEL = 'vit_tiny_patch8_32'
FUZZING = pytest.mark.group(name='fuzzing')


class Hostile:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """What hostile files create."""
    return tmp_path / 'trap'


def hostile(path: Path, trap: Path, state: dict[str, Tensor]) -> Path:
    torch.save({'state_dict': state, 'explora_geo': {'task': 'SegmentationTask'}, 'x': Hostile(trap)}, path)
    return path


def bare(path: Path, trap: Path, state: dict[str, Tensor]) -> Path:
    path.write_bytes(pickle.dumps(Hostile(trap)))
    return path


def text(path: Path, trap: Path, state: dict[str, Tensor]) -> Path:
    path.write_text('version https://git-lfs.github.com/spec/v1')
    return path


def empty(path: Path, trap: Path, state: dict[str, Tensor]) -> Path:
    path.write_bytes(b'')
    return path


def image(path: Path, trap: Path, state: dict[str, Tensor]) -> Path:
    Image.new('RGB', (8, 8)).save(path, format='PNG')
    return path


def folder(path: Path, trap: Path, state: dict[str, Tensor]) -> Path:
    path.mkdir()
    return path


def cut(path: Path, trap: Path, state: dict[str, Tensor]) -> Path:
    (save_file if path.suffix == '.safetensors' else torch.save)(state, path)
    path.write_bytes(path.read_bytes()[:-100])
    return path


MAKERS = (hostile, bare, text, empty, image, folder, cut)


@pytest.fixture
def commands(tmp_path: Path, tiles: Path, base_file: Path) -> Callable[[Path], list[list[Any]]]:
    """Every command that reads weights, given a file of them."""
    scene = raster(tmp_path / 'scene.tif', crs='EPSG:32631')
    for part in ('train', 'test'):
        (tmp_path / 'data' / part / 'a').mkdir(parents=True)
        plain(tmp_path / 'data' / part / 'a' / 'a.png')
    out = tmp_path / 'out.safetensors'
    data = ['--data.init_args.root', tiles, '--data.init_args.val_root', 'null']
    fit = ['fit', '--config', CONF / 'pretrain_mae_folder.yaml', *data]
    fit += ['--trainer.default_root_dir', tmp_path / 'run', '--trainer.logger', 'false']
    small = ['--model.init_args.model', MODEL, '--data.init_args.image_size', 32]

    def make(file: Path) -> list[list[Any]]:
        return [
            ['weights', 'inspect', file],
            ['adapter', 'info', file],
            ['adapter', 'merge', file, '--base', base_file, '--out', out],
            ['export', out, '--weights', file, '--model', MODEL],
            ['export', out, '--weights', base_file, '--model', MODEL, '--adapter', file],
            ['export', out.with_suffix('.pt2'), '--tuned', file],
            ['probe', tmp_path / 'data', '--weights', file, '--model', MODEL],
            ['probe', tmp_path / 'data', '--weights', base_file, '--model', MODEL, '--adapter', file],
            ['map', scene, '--model', file, '--out', tmp_path / 'map.tif'],
            ['map', scene, '--weights', file, '--embeddings', tmp_path / 'map.tif'],
            [*fit, *small, '--model.init_args.weights', file],
            [*fit, *small, '--model.init_args.weights', base_file, '--ckpt_path', file],
            ['fit', '--config', file],
        ]

    return make


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('suffix', ['.pth', '.ckpt', '.safetensors'])
@pytest.mark.parametrize('make', [hostile, *(pytest.param(m, marks=FUZZING) for m in MAKERS[1:])])
def test_no_command_trusts_a_file(
    refuse: Refuse,
    commands: Callable[[Path], list[list[Any]]],
    base_state: dict[str, Tensor],
    trap: Path,
    make: Any,
    suffix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging, 'raiseExceptions', False)  # loggers keep the streams of other tests
    path = make(trap.parent / f'weights{suffix}', trap, base_state)
    for command in commands(path):
        sentence = refuse(*command)
        assert path.name in sentence and len(sentence) < 500, command[:3]
    assert not trap.exists() and not (trap.parent / 'out.safetensors').exists()


@pytest.mark.parametrize(
    ('args', 'sentence'),
    [
        (['params', '[L]-r8', '--backbone', 'vit_tiny_patch0_224'], 'patch_size'),
        (['params', '[L]-r8', '--backbone', 'vit_tiny_patch16_0'], 'img_size'),
        (['params', '[L]-r8', '--alpha', 'nan'], 'alpha must be positive'),
        (['params', '[L]-r8', '--alpha', 'inf'], 'alpha must be positive'),
        (['params', '[L-99]-r8'], 'does not exist'),
        (['params', '[L]-r8', '--targets', ''], 'targets must be among'),
    ],
)
def test_impossible_models_are_refused_when_they_are_counted(
    refuse: Refuse, args: list[str], sentence: str
) -> None:
    assert sentence in refuse(*args)
