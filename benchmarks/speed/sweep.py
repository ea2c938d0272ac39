"""How long the paper's sweep of linear probes takes on cached features of real images."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from explora_geo.evaluation import FeatureTable, SweepConfig, linear_sweep

from .records import add_row, hardware

BLOCKS = 4


def time_sweep(out: Path, images: Path, width: int, config: SweepConfig | None = None) -> Path:
    """Sweep once over tokens that are random projections of real tiles, in the cache's half precision.

    Args:
        out: Folder; rows are added to `speed_sweep.jsonl`, and `speed_sweep.md` shows all of them.
        images: Folder with `train` and `test`, each of class folders of JPEG files.
        width: Width D of the tokens.
        config: The sweep; the paper's if None.

    Returns:
        The Markdown file.

    Raises:
        FileNotFoundError: If there are no images.
    """
    config = config or SweepConfig()
    Console().print(f'reading {images}', markup=False)
    train, test = (_tokens(images / part, width) for part in ('train', 'test'))
    start, used = time.perf_counter(), time.process_time()
    found = linear_sweep(train, test, test, config)
    seconds, cpu = time.perf_counter() - start, time.process_time() - used
    row = {
        'objective': 'sweep',
        'setting': {'width': width, 'images': len(train.label) + len(test.label), **_plain(config)},
        'hardware': hardware('cpu'),
        'torch': torch.__version__,
        'configurations': len(found.rows),
        'seconds': round(seconds, 1),
        'cpu_seconds': round(cpu, 1),
        'accuracy': round(found.best.test, 4),
    }
    return add_row(out / 'speed_sweep.jsonl', row, markdown)


def _plain(config: SweepConfig) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(config).items()}


def _tokens(folder: Path, width: int) -> FeatureTable:
    """Class and patch tokens of the last blocks, as if a backbone had made them."""
    files = sorted(folder.glob('*/*.jpg'))
    if not files:
        raise FileNotFoundError(f'{folder} holds no class folders of JPEG images')
    names = sorted({path.parent.name for path in files})
    pixels = [np.asarray(Image.open(path).reduce(8), dtype=np.float32).ravel() / 255 for path in files]
    x = torch.from_numpy(np.stack(pixels)) - 0.4
    generator = torch.Generator().manual_seed(0)

    def project() -> Tensor:
        blocks = [
            (x @ torch.randn(x.shape[1], width, generator=generator)).relu().half() for _ in range(BLOCKS)
        ]
        return torch.stack(blocks, dim=1)

    return FeatureTable(project(), project(), torch.tensor([names.index(path.parent.name) for path in files]))


def markdown(rows: list[dict[str, Any]]) -> str:
    """All measurements as a table.

    Args:
        rows: Results of `time_sweep`.

    Returns:
        Markdown.
    """
    lines = [
        '# The sweep of linear probes',
        '',
        'Made by `explora-bench sweep`: seven learning rates, last 1 and last 4 blocks, with and without the '
        'mean patch token, in one pass over cached tokens (random projections of real tiles).',
        '',
        '| width | vectors | configurations | steps of | wall, s | CPU, s | hardware |',
        '|' + '---|' * 7,
    ]
    for row in rows:
        s = row['setting']
        steps = f'{s["epochs"] * s["iterations"]:,} x {s["batch_size"]}'
        lines.append(
            f'| {s["width"]} | {s["images"]:,} | {row["configurations"]} | {steps} | {row["seconds"]} '
            f'| {row["cpu_seconds"]} | {row["hardware"]} |'
        )
    return '\n'.join([*lines, ''])
