"""Highest memory of a training step, each contender in a process of its own."""

import gc
import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.speed import others
from benchmarks.speed.setting import Setting
from benchmarks.speed.steps import CONTENDERS, add_row, hardware


def compare_peaks(out: Path, objective: str, setting: Setting, only: str = '') -> Path:
    """Measure what the process of every contender grows by, from before the model is built.

    Args:
        out: Folder; rows are added to `speed_peak.jsonl`, and `speed_peak.md` shows all of them.
        objective: `mae` or `dinov2`.
        setting: The work of a step.
        only: Only contenders whose name holds this text.

    Returns:
        The Markdown file.

    Raises:
        ValueError: If the objective is unknown.
    """
    if objective not in CONTENDERS:
        raise ValueError(f'objective must be one of {", ".join(CONTENDERS)}, got {objective!r}')
    peaks: dict[str, int] = {}
    absent: dict[str, str] = {}
    for name in CONTENDERS[objective]:
        if only not in name:
            continue
        if lacking := others.missing(name):
            absent[name] = f'{lacking} is not installed'
            continue
        Console().print(name, markup=False)
        try:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
                peaks[name] = pool.submit(step_peak, objective, name, setting).result()
        except ValueError as error:
            absent[name] = str(error)
    row = {
        'objective': objective,
        'setting': {
            **{k: str(v) for k, v in vars(setting).items() if k != 'head'},
            'head': vars(setting.head),
        },
        'hardware': hardware(setting),
        'torch': torch.__version__,
        'peaks': peaks,
        'missing': absent,
    }
    return add_row(out / 'speed_peak.jsonl', row, markdown)


def step_peak(objective: str, name: str, setting: Setting) -> int:
    """Bytes that a step needs at most, with the optimiser's averages in place.

    Args:
        objective: `mae` or `dinov2`.
        name: Contender.
        setting: The work of a step.

    Returns:
        Growth of this process, or what the GPU allocated at most.
    """
    gc.collect()
    before = _highest()
    step = CONTENDERS[objective][name](setting)
    for group in step.optimizer.param_groups:
        for parameter in group['params']:
            parameter.grad = torch.zeros_like(parameter)
    step.optimizer.step()
    step()
    if setting.device.startswith('cuda'):
        return torch.cuda.max_memory_allocated()
    return _highest() - before


def _highest() -> int:
    """Bytes that this process held at most; `ru_maxrss` would count the process that started it too."""
    status = Path('/proc/self/status')
    if status.is_file():
        return 1024 * int(status.read_text().split('VmHWM:')[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def markdown(rows: list[dict[str, Any]]) -> str:
    """All measurements as tables.

    Args:
        rows: Results of `compare_peaks`.

    Returns:
        Markdown.
    """
    lines = [
        '# Peak memory of training steps',
        '',
        'Made by `explora-bench peak`: weights, gradients, optimiser and activations of one step on real '
        'images, each contender in a process of its own. Shares are of the last row that trains all weights.',
    ]
    for row in rows:
        s = row['setting']
        crops = f'2 x {s["image_size"]} + {s["num_local"]} x {s["local_size"]} px crops'
        size = f'{s["image_size"]} px' if row['objective'] == 'mae' else crops
        full = [peak for name, peak in row['peaks'].items() if 'all weights' in name]
        lines += [
            '',
            f'## {row["objective"]}, {s["model"]}, batch {s["batch"]}, {size}, {s["precision"]}',
            '',
            f'{row["hardware"]}, torch {row["torch"]}.',
            '',
            '| step | GB | share |',
            '|---|---|---|',
        ]
        for name, peak in row['peaks'].items():
            share = f'{peak / full[-1]:.0%}' if full else '-'
            lines.append(f'| {name} | {peak / 1e9:.2f} | {share} |')
        lines += [f'| {name} | {why} | - |' for name, why in row['missing'].items()]
    return '\n'.join([*lines, ''])
