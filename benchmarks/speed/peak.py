"""Highest memory of a training step, on a CPU each contender in a process of its own."""

import gc
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from ..tables.meter import Meter
from .contenders import find, for_each
from .records import add_row, describe, heading
from .setting import Setting

#: glibc: freed tensors go back to the system instead of staying with the process as gaps between others.
_ALLOCATOR = {'MALLOC_MMAP_THRESHOLD_': str(128 * 1024)}


def compare_peaks(
    out: Path, objective: str, setting: Setting, only: str = '', compiled: bool = False
) -> Path:
    """Measure what the process of every contender grows by, from before the model is built.

    Args:
        out: Folder; rows are added to `speed_peak.jsonl`, and `speed_peak.md` shows all of them.
        objective: `mae` or `dinov2`.
        setting: The work of a step.
        only: Only contenders in whose name this regular expression is found, and the first.
        compiled: Also steps that compile first; on a GPU only.

    Returns:
        The Markdown file.

    Raises:
        ValueError: If the objective is unknown, or a compiler would be part of what is measured.
    """
    if compiled and not setting.device.startswith('cuda'):
        raise ValueError(
            'the compiler takes memory of the same process: measure compiled steps on a GPU, or leave '
            '--compiled out'
        )

    # What attention keeps on a GPU; time does not matter here.
    setting = replace(setting, fused=True)

    def measure(name: str) -> int:
        if setting.device.startswith('cuda'):
            return step_peak(objective, name, setting)  # the allocator counts its own tensors exactly
        spawn = multiprocessing.get_context('spawn')
        with patch.dict(os.environ, _ALLOCATOR), ProcessPoolExecutor(1, mp_context=spawn) as pool:
            return pool.submit(step_peak, objective, name, setting).result()

    peaks, absent = for_each(find(objective, compiled), measure, only)
    row = {
        **describe(objective, setting),
        'only': only,
        'compiled': compiled,
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
    before = torch.cuda.memory_allocated() if setting.device.startswith('cuda') else 0
    with Meter() as meter:
        step = find(objective, compiled=True)[name](setting)
        for group in step.optimizer.param_groups:
            for parameter in group['params']:
                parameter.grad = torch.zeros_like(parameter)
        step.optimizer.step()
        step()
    return meter.peak_memory - before


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
        'images with fused attention; on a CPU each contender has a process of its own. Shares are of the '
        'last row that trains all weights.',
    ]
    for row in rows:
        full = [peak for name, peak in row['peaks'].items() if 'all weights' in name]
        lines += [*heading(row), '| step | GB | share |', '|---|---|---|']
        for name, peak in row['peaks'].items():
            share = f'{peak / full[-1]:.0%}' if full else '-'
            lines.append(f'| {name} | {peak / 1e9:.2f} | {share} |')
        lines += [f'| {name} | {why} | - |' for name, why in row['missing'].items()]
    return '\n'.join([*lines, ''])
