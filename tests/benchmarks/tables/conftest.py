"""A scale of seconds: three blocks of width 32, 24 real tiles, four steps."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.tables.records import Record
from benchmarks.tables.scales import Scale, read_scale
from explora_geo import _adapt_progress


@pytest.fixture
def scale_file(base_file: Path, tiles: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a scale; arguments replace its values."""

    def write(**changes: Any) -> Path:
        source = {'model': 'vit_tiny_patch8_32', 'weights': str(base_file)}
        mae = {
            'objective': 'MAE',
            'base_lr': 1e-3,
            'lr_scaling': 'none',
            'steps': 4,
            'batch_size': 8,
            'arguments': {'decoder_embed_dim': 16, 'decoder_depth': 1, 'decoder_num_heads': 2},
        }
        dinov2 = {
            **mae,
            'objective': 'DINOv2',
            'arguments': {
                'head': {'prototypes': 24, 'hidden_dim': 16, 'bottleneck_dim': 8},
                'views': {'global_size': 32, 'local_size': 16},
            },
        }
        optim = {'base_lr': 1e-3, 'lr_scaling': 'none'}
        module = {'root': str(tiles), 'test_root': str(tiles), 'image_size': 32, 'val_split': 0.25}
        content = {
            'about': 'four steps on 24 tiles',
            'sources': {'M': source, 'D': {**source, 'note': 'the same for both'}},
            'data': {
                'fmow_rgb': {
                    'stands_in': '24 tiles',
                    'class_path': 'explora_geo.datamodules.FolderDataModule',
                    'init_args': module,
                }
            },
            'pretrain': {'M': mae, 'D': dinov2},
            'tune': {k: {'batch_size': 8, 'steps': 2, 'optim': optim} for k in ('lora', 'full')},
            'probe': {'methods': ['logistic', 'knn']},
            'every': 2,
            'curve': 6,
            'max_rank': 4,
            'trainer': {'accelerator': 'cpu'},
            **changes,
        }
        path = tmp_path / 'tiny.yaml'
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


@pytest.fixture
def tiny(scale_file: Callable[..., Path]) -> Scale:
    return read_scale(scale_file())


@pytest.fixture
def metered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A meter of one watt, whatever the machine has."""
    monkeypatch.setattr(_adapt_progress, '_rapl_meters', lambda: [(time.monotonic, 0.0)])


@pytest.fixture
def record() -> Callable[..., Record]:
    """A record of one row and seed without a run."""

    def make(row: str, seed: int, value: float, table: str = '3', **changes: Any) -> Record:
        return {
            'table': table,
            'row': row,
            'name': row,
            'origin': 'run',
            'scale': 'tiny',
            'seed': seed,
            'value': value,
            'scores': {'linear, all': value, 'knn, all': value - 5},
            'dataset': 'fmow_rgb',
            'stands_in': '24 tiles',
            'model': 'vit_tiny_patch8_32',
            'source': 'base',
            'adaptation': None if row == 'source' else '[L]-r4',
            'tuning': 'probe',
            'trainable': 0 if row == 'source' else 1_000_000 + len(row),
            'parameters': 5_000_000,
            'steps': 4,
            'images_seen': 0 if row == 'source' else 32,
            'images_per_s': None if row == 'source' else 100.0,
            'seconds': 1.0,
            'peak_memory': 10,
            'flops': 0.0 if row == 'source' else 1e12 * len(row),
            'energy': {'kwh': 0.001, 'kg': 0.0004, 'method': 'formula, 10 W', 'pretrain_kg': 0.0003},
            'curve': [] if row == 'source' else [[0, 0.5], [4, 0.6]],
            'details': [],
            'images': {'train': 18, 'val': 6, 'test': 24},
            'feature_dim': 32,
            'hardware': {'device': 'CPU, 1 threads', 'system': 'Linux'},
            'versions': {},
            'stages': {},
            **changes,
        }

    return make
