"""What a user waits for before and after training: imports, the command line's help, adapter files."""

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.checkpoints.adapter import frozen_sha256, save_adapter
from explora_geo.models import create_vit
from explora_geo.models.vit import ViT

from .clock import Times, alternate
from .records import add_row, begin, section, table

TORCH, HELP = 'import torch', 'explora-geo --help'
#: Arguments of Python, each run in a process of its own.
COMMANDS: dict[str, Sequence[str]] = {
    TORCH: ('-c', TORCH),
    **{
        line: ('-c', line)
        for line in ('import torchgeo.trainers', 'import explora_geo', 'from explora_geo import ExPLoRATask')
    },
    HELP: ('-m', 'explora_geo', '--help'),
}
_TARGETS = {
    'import explora_geo': 'below 1 s beyond torch',
    HELP: 'below 3 s',
    'save_adapter, float32': 'below 1 s, 63 MB',
    'save_adapter, bfloat16': 'below 1 s, 31 MB',
}
_HASH = 'hash of the frozen base, once a run'


def time_startup(
    out: Path, model: str, adaptation: str, repeats: int, commands: Mapping[str, Sequence[str]] = COMMANDS
) -> Path:
    """Time processes in turns, then files of a model of that size in turns.

    Args:
        out: Folder; rows are added to `speed_startup.jsonl`, and `speed_startup.md` shows all of them.
        model: Backbone of the adapter files.
        adaptation: What trains in it, in the paper's notation.
        repeats: Rounds that count.
        commands: Arguments of Python by name.

    Returns:
        The Markdown file.
    """
    times = alternate({name: partial(_run, words) for name, words in commands.items()}, repeats)
    saved, sizes = _time_files(model, adaptation, repeats)
    row = {
        **begin('startup', model=model, adaptation=adaptation),
        'repeats': repeats,
        'times': {n: t._asdict() for n, t in (times | saved).items()},
        'bytes': sizes,
    }
    return add_row(out / 'speed_startup.jsonl', row, markdown)


def _run(arguments: Sequence[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


def _time_files(model: str, adaptation: str, repeats: int) -> tuple[dict[str, Times], dict[str, int]]:
    config = ExPLoRAConfig.parse(adaptation)
    vit = build(model, config)
    with tempfile.TemporaryDirectory() as folder:
        files = {
            f'save_adapter, {name}': (Path(folder) / f'{name}.safetensors', getattr(torch, name))
            for name in ('float32', 'bfloat16')
        }
        steps: dict[str, Any] = {
            name: partial(save_adapter, path, vit, model, config, dtype=dtype, base_sha256=64 * '0')
            for name, (path, dtype) in files.items()
        }
        times = alternate({**steps, _HASH: partial(frozen_sha256, vit)}, repeats)
        return times, {name: path.stat().st_size for name, (path, _) in files.items()}


def build(model: str, config: ExPLoRAConfig) -> ViT:
    """An adapted backbone of random numbers."""
    with torch.device('meta'):
        vit = create_vit(model)
        explora(vit, config)
    vit.to_empty(device='cpu')
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in vit.state_dict().values():
            tensor.normal_(std=0.02)
    return vit


def markdown(rows: list[dict[str, Any]]) -> str:
    """All measurements as tables.

    Args:
        rows: Results of `time_startup`.

    Returns:
        Markdown.
    """
    lines = [
        '# Start and end of a run',
        '',
        'Made by `explora-bench startup`: every import and command in a process of its own, in turns; then '
        'adapter files of a model of random numbers, in turns. Median of the rounds with the fastest and '
        'slowest.',
    ]
    for row in rows:
        s, first = row['setting'], row['times'][TORCH]['median']
        cells = []
        for name, values in row['times'].items():
            size = row['bytes'].get(name)
            process = size is None and name not in (_HASH, TORCH)
            cells.append(
                (
                    name,
                    Times(**values).text(2),
                    f'{values["median"] - first:+.2f}' if process else '-',
                    '-' if size is None else f'{size / 1e6:.1f}',
                    _TARGETS.get(name, '-'),
                )
            )
        lines += [
            *section(f'Files of {s["model"]}, {s["adaptation"]}', row, f', {row["repeats"]} rounds'),
            *table(('what', 'seconds', 'beyond torch, s', 'MB', 'target'), cells),
        ]
    return '\n'.join([*lines, ''])
