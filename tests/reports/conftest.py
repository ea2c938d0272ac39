"""A report of real tiles and two tiny backbones."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from explora_geo.datasets import FolderDataset
from explora_geo.evaluation import compare_backbones
from explora_geo.models import PatchTokenizer, ViT
from explora_geo.objectives import MAE
from explora_geo.reports import compute_pictures, display_tiles, reconstruct

TILES = Path(__file__).parents[1] / 'data' / 'eurosat_rgb' / 'test'
#: A name that a page must not take for its own.
EVIL = '<script>alert("x")</script>&.tif'


@pytest.fixture(scope='session')
def dataset() -> FolderDataset:
    """Real tiles of ten classes."""
    return FolderDataset(TILES, size=64)


@pytest.fixture(scope='session')
def sample(dataset: FolderDataset) -> Tensor:
    """Fifty of them, normalized, shape (50, 3, 64, 64)."""
    return torch.stack([dataset[i]['image'] for i in range(0, 1000, 20)]) / 50 - 2


@pytest.fixture(scope='session')
def backbones() -> tuple[ViT, ViT]:
    """A tiny ViT, and the same with another last block."""
    torch.manual_seed(0)
    source = ViT(PatchTokenizer(32, 64, 8), 32, 2, 2).eval()
    adapted = copy.deepcopy(source)
    with torch.no_grad():
        adapted.blocks[-1].mlp.fc2.weight.add_(0.1 * torch.randn(32, 128))
    return source, adapted


@pytest.fixture(scope='session')
def pictures(dataset: FolderDataset, sample: Tensor, backbones: tuple[ViT, ViT]) -> dict[str, Any]:
    """All pictures of a report of M."""
    numbers = range(0, 1000, 20)
    display = display_tiles([100.0] * 3, [50.0] * 3, ('red', 'green', 'blue'))
    names = [EVIL, *(dataset.files[i].name for i in numbers[1:])]
    found = compute_pictures(dict(zip(('source', 'adapted'), backbones, strict=True)), sample, display, names)
    objective = MAE(copy.deepcopy(backbones[1]), decoder_embed_dim=32, decoder_depth=1)
    return {**found, 'reconstructions': reconstruct(objective, sample, display)}


def score(mean: float, half: float = 0.012, **more: Any) -> dict[str, Any]:
    """A score with its interval."""
    return {'mean': mean, 'low': mean - half, 'high': mean + half, **more}


def row(metric: str, source: float, gain: float, half: float = 0.014) -> dict[str, Any]:
    """A row of scores with both rivals."""
    return {
        'metric': metric,
        'source': score(source),
        'adapted': score(source + gain),
        'gain': score(gain, half),
        'best_block': score(source + 0.01, block=5),
        'turns_source': score(source + 0.02, turns=4),
    }


@pytest.fixture(scope='session')
def whole(sample: Tensor, backbones: tuple[ViT, ViT]) -> dict[str, Any]:
    """Every part of a report, which no test changes."""
    steps = np.arange(0, 400, 4)
    return {
        'created': '27 November 2026',
        'version': '0.1.0',
        'archive': {'source': TILES, 'kind': 'tiles', 'count': 2200, 'size': (64, 64), 'dtype': 'uint8'},
        'model': {'weights': f'weights/{EVIL}', 'backbone': 'vit_tiny_patch8_64', 'parameters': 5_500_000},
        'adaptation': {'notation': 'M-ExPLoRA-[L]-r32', 'objective': 'mae', 'trainable': 0.1, 'steps': 400},
        'scores': {
            'labels': {'source': TILES.parent, 'train': 1000, 'validation': 250, 'test': 750, 'classes': 10},
            'rows': [row('knn', 0.69, 0.06), row('linear', 0.84, 0.04), row('few', 0.71, 0.009)],
        },
        'quoted': {'source': 'full.json', 'command': f'explora-bench {"a_long_path/" * 20}'},
        'label_free': {'tiles': 50, **compare_backbones(*backbones, sample[:30], neighbors=5)},
        'retention': {'source': 'natural images', 'row': row('knn', 0.61, -0.01)},
        'strength': {'x': [0, 0.5, 1], 'series': [{'title': 'k-NN', 'y': [0.69, 0.72, 0.75]}], 'chosen': 1.0},
        'curves': [
            {'title': f'loss {EVIL}', 'x': steps, 'y': np.exp(-steps / 100)},
            {'title': 'k-NN accuracy', 'x': [0, 200, 400], 'y': [0.69, float('nan'), 0.75], 'start': 0.69},
        ],
        'skipped': [f'tiles/{EVIL}: truncated', *(f'tiles/{i}.tif: all nodata' for i in range(60))],
        'cost': {'seconds': {'adapting': 1490.0, 'scoring': 42}, 'memory': 2_310_000_000, 'energy': 14.2},
        'next': ['explora-geo probe data --weights w.safetensors', 'two', 'three', 'four'],
    }


@pytest.fixture
def report(whole: dict[str, Any]) -> dict[str, Any]:
    """Every part of a report, of each test its own."""
    return copy.deepcopy(whole)
