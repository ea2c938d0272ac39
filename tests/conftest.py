"""Settings of every test: offline, no display, few threads, fixed seeds."""

import os

# Before torch, matplotlib and huggingface_hub are imported: they read these once
os.environ['HF_HUB_OFFLINE'] = '1'
os.environ['MPLBACKEND'] = 'Agg'
os.environ.setdefault('OMP_NUM_THREADS', '2')

import importlib.util
import random
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import numpy as np
import pytest
import rasterio
import torch
from rasterio.errors import NotGeoreferencedWarning
from torch import Tensor

import benchmarks
from explora_geo.checkpoints import files
from explora_geo.cli import main
from explora_geo.evaluation import FeatureTable
from explora_geo.models import PatchTokenizer, TrunkConfig, ViT, builders
from explora_geo.models.tokenizers import RGB
from explora_geo.objectives import MAE

DATA = Path(__file__).parent / 'data'
TILES = DATA / 'eurosat_rgb'
MODEL = 'vit_tiny_patch8_32'
#: All tests, whichever are run.
COLLECTED = pytest.StashKey[list[pytest.Item]]()

# Configurations name `explora_bench`: here it is this checkout, whatever is installed
sys.modules['explora_bench'] = benchmarks
matplotlib.use('Agg')
torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep what was collected before marks choose; skip tests marked gpu where there is no CUDA device."""
    config.stash[COLLECTED] = list(items)
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason='needs a CUDA device')
    for item in items:
        if 'gpu' in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Start every test from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def images() -> Tensor:
    """Eight real tiles, normalized by band, shape (8, 3, 32, 32)."""
    from explora_geo.datasets import FolderDataset

    dataset = FolderDataset(TILES / 'test', size=32)
    tiles = torch.stack([dataset[i]['image'] for i in range(0, 800, 100)])
    deviation, mean = torch.std_mean(tiles, dim=(0, 2, 3), keepdim=True)
    return (tiles - mean) / deviation


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """A folder of 24 real tiles in three class folders."""
    for name in ('Forest', 'River', 'SeaLake'):
        (tmp_path / 'tiles' / name).mkdir(parents=True)
        for path in sorted((TILES / 'train' / name).glob('*.jpg'))[:8]:
            shutil.copy(path, tmp_path / 'tiles' / name)
    return tmp_path / 'tiles'


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """Twelve real 64 px windows of NAIP with masks of vegetation, and the index itself as numbers.

    The folders are `masks` and `numbers`, each with `images` (red, green, blue) and `masks`. Vegetation is
    a difference index above 0.1 of near infrared, which the images do not carry.
    """
    scene = sorted((Path(__file__).parent / 'data' / 'naip').glob('*.tif'))[0]
    with rasterio.open(scene) as source:
        pixels = source.read()
    red, nir = pixels[0].astype(np.float32), pixels[3].astype(np.float32)
    index = (nir - red) / np.maximum(nir + red, 1)
    targets = {'masks': (index > 0.1).astype(np.uint8), 'numbers': index}
    for name, values in targets.items():
        for number in range(12):
            top, left = 64 * (number // 4), 64 * (number % 4)
            window = slice(top, top + 64), slice(left, left + 64)
            for kind, data in (('images', pixels[:3]), ('masks', values[None])):
                file = tmp_path / name / kind / f'{number:02d}.tif'
                file.parent.mkdir(parents=True, exist_ok=True)
                cut = data[:, *window]
                profile = {'count': len(cut), 'dtype': cut.dtype, 'height': 64, 'width': 64}
                with warnings.catch_warnings():
                    warnings.simplefilter('ignore', NotGeoreferencedWarning)
                    with rasterio.open(file, 'w', driver='GTiff', **profile) as target:
                        target.write(cut)
    return tmp_path / 'masks'


@pytest.fixture
def fmow(tmp_path: Path) -> Path:
    """fMoW-RGB: two splits of ten images of four places."""
    return Path(_load('fmow').create(tmp_path / 'fmow_root'))


@pytest.fixture
def fmow_sentinel(tmp_path: Path) -> Path:
    """fMoW-Sentinel: two splits of seven tiles of three places."""
    return Path(_load('fmow_sentinel').create(tmp_path / 'sentinel_root'))


@pytest.fixture
def seed_data(tmp_path: Path) -> Callable[[str], Path]:
    """Write a tiny fake of a data set in its true layout, and return its root."""
    from tests.benchmarks.samples import WRITERS

    def make(name: str) -> Path:
        root = tmp_path / name
        WRITERS[name](root)
        return root

    return make


@pytest.fixture
def build_vit() -> Callable[..., ViT]:
    """Build a ViT of 3 blocks and width 32 for 32 px images, whose every number is random."""

    def build(
        width: int = 32,
        depth: int = 3,
        heads: int = 2,
        img_size: int = 32,
        patch_size: int = 8,
        bands: Sequence[str] = RGB,
        dynamic_img_size: bool = False,
        **kwargs: Any,
    ) -> ViT:
        tokenizer = PatchTokenizer(width, img_size, patch_size, bands, dynamic_img_size)
        trunk = TrunkConfig(**{f.name: kwargs.pop(f.name) for f in fields(TrunkConfig) if f.name in kwargs})
        return randomise(ViT(tokenizer, width, depth, heads, trunk, **kwargs))

    return build


@pytest.fixture
def small_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the names `vit_tiny_*` three blocks of width 32, and `vit_small_*` two, for speed."""
    monkeypatch.setitem(builders._SIZES, 'tiny', (32, 3, 2))
    monkeypatch.setitem(builders._SIZES, 'small', (32, 2, 2))


@pytest.fixture
def base_state(small_names: None) -> dict[str, Tensor]:
    """Weights of `vit_tiny_patch8_32` with a decoder of one block, our keys."""
    vit = randomise(builders.create_vit(MODEL))
    mae = MAE(vit, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)
    return {k: v.clone() for k, v in {**vit.state_dict(), **mae.extra_state()}.items()}


@pytest.fixture
def base_file(base_state: dict[str, Tensor], tmp_path: Path) -> Path:
    """Those weights as a file."""
    torch.save({'model': base_state}, tmp_path / 'base.pth')
    return tmp_path / 'base.pth'


@pytest.fixture
def table() -> Callable[..., FeatureTable]:
    """Build features whose class tokens lie around one point per class, as far apart as `distance`."""

    def build(count: int, seed: int, distance: float = 2.0, classes: int = 3) -> FeatureTable:
        generator = torch.Generator().manual_seed(seed)
        label = torch.arange(count) % classes
        centers = distance * torch.eye(classes, 8)
        cls = torch.randn(count, 4, 8, generator=generator) + centers[label][:, None]
        avg = torch.randn(count, 4, 8, generator=generator)
        return FeatureTable(cls.half(), avg.half(), label)

    return build


@pytest.fixture
def fail_to_write(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make every later write of tensors fail half way."""

    def disk_full(tensors: object, file: Path, metadata: object) -> None:
        Path(file).write_bytes(b'half')
        raise OSError('No space left on device')

    return lambda: monkeypatch.setattr(files, 'save_file', disk_full)


def _load(name: str) -> ModuleType:
    """The script that makes a tiny copy of a data set."""
    spec = importlib.util.spec_from_file_location(f'data_{name}', DATA / name / 'data.py')
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def randomise(vit: ViT) -> ViT:
    """Make biases, norms and LayerScale random too: 0 and 1 hide mistakes."""
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return vit


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that succeeds, and return what it prints."""

    def call(*args: object) -> str:
        try:
            main([str(a) for a in args])
        except SystemExit as stop:
            assert not stop.code, capsys.readouterr().err
        return capsys.readouterr().out

    return call


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail in one sentence with exit code 2, and return the sentence."""

    def call(*args: object) -> str:
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in args])
        printed = capsys.readouterr()
        assert stop.value.code == 2 and 'Traceback' not in printed.err + printed.out
        lines = [line for line in printed.err.splitlines() if line.startswith('error: ')]
        assert len(lines) == 1 and printed.err.rstrip().endswith(lines[0])
        return lines[0].removeprefix('error: ')

    return call
