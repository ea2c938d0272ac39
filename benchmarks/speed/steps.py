"""Commands that measure training steps beside others: `speed` and `peak`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

RESULTS = Path('benchmarks/results')
OUT = Annotated[Path, typer.Option(help='Folder of the results.')]
REPEATS = Annotated[int, typer.Option(help='Rounds that count.')]
_ONLY = Annotated[
    str, typer.Option(help='Only contenders in whose name this regular expression is found, and the first.')
]
_COMPILED = Annotated[bool, typer.Option(help='Also steps with torch.compile, which takes minutes first.')]
_MODEL = Annotated[str, typer.Option(help='Backbone.')]
_BATCH = Annotated[int, typer.Option(help='Images per step.')]
_IMAGE_SIZE = Annotated[int, typer.Option(help='Side of images and global crops, pixels.')]
_LOCAL_SIZE = Annotated[int, typer.Option(help='Side of local crops, pixels.')]
_NUM_LOCAL = Annotated[int, typer.Option(help='Local crops per image.')]
_PRECISION = Annotated[str, typer.Option(help='bf16 or fp32; the faster one here if empty.')]
_OBJECTIVE = Annotated[str, typer.Option(help='mae or dinov2.')]


def _setting(
    model: str, batch: int, image_size: int, local_size: int = 96, num_local: int = 8, precision: str = ''
) -> Any:
    from .setting import Setting

    return Setting(model, batch, image_size, local_size, num_local, precision=precision or None)  # type: ignore[arg-type]


def speed(
    objective: _OBJECTIVE = 'mae',
    model: _MODEL = 'vit_base_patch16_224',
    batch: _BATCH = 8,
    image_size: _IMAGE_SIZE = 224,
    local_size: _LOCAL_SIZE = 96,
    num_local: _NUM_LOCAL = 8,
    precision: _PRECISION = '',
    repeats: REPEATS = 5,
    only: _ONLY = '',
    compiled: _COMPILED = False,
    out: OUT = RESULTS,
) -> None:
    """Time training steps beside those of PEFT, Hugging Face, lightly and TorchGeo, in turns.

    Example: explora-bench speed --objective dinov2 --batch 2 --only explora_geo
    """
    setting = _setting(model, batch, image_size, local_size, num_local, precision)
    typer.echo(compare_steps(out, objective, setting, repeats, only, compiled).read_text())


def compare_steps(
    out: Path, objective: str, setting: Any, repeats: int = 5, only: str = '', compiled: bool = False
) -> Path:
    """Step every contender in turns; returns the Markdown file.

    Raises:
        ValueError: If the objective is unknown.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from .engine import add, alternate
    from .others import find, for_each

    contenders = find(objective, compiled)

    def build(name: str) -> Any:
        torch.manual_seed(0)
        return contenders[name](setting)

    steps, absent = for_each(contenders, build, only)
    times = alternate(steps, repeats, warmup=1 if setting.device == 'cpu' else 3)
    flops = {}
    for name, step in steps.items():
        with FlopCounterMode(display=False) as counter:
            step()
        flops[name] = counter.get_total_flops() / 1e9
    first = next(iter(times.values()))
    return add(
        out,
        'speed',
        'forward, backward and optimizer (and the teacher) on real images, contenders in turns; GFLOP by '
        "torch's counter, which knows none of a CPU's fused attention.",
        {**setting.describe(objective), 'only': only, 'compiled': compiled},
        {
            'seconds': {name: t.median for name, t in times.items()},
            'fastest': {name: t.low for name, t in times.items()},
            'slowest': {name: t.high for name, t in times.items()},
            'ratio': {name: t.median / first.median for name, t in times.items()},
            'trains, M': {name: step.trained / 1e6 for name, step in steps.items()},
            'GFLOP': flops,
            'ratio of GFLOP': {name: count / next(iter(flops.values())) for name, count in flops.items()},
            'images/s': {name: setting.batch / t.median for name, t in times.items()},
        },
        absent,
    )


def peak(
    objective: _OBJECTIVE = 'mae',
    model: _MODEL = 'vit_base_patch16_224',
    batch: _BATCH = 8,
    image_size: _IMAGE_SIZE = 224,
    local_size: _LOCAL_SIZE = 96,
    num_local: _NUM_LOCAL = 8,
    precision: _PRECISION = '',
    only: _ONLY = '',
    compiled: _COMPILED = False,
    out: OUT = RESULTS,
) -> None:
    """Measure the memory of a training step beside others, each in a process of its own.

    Example: explora-bench peak --objective dinov2 --model vit_large_patch16_224 --only explora_geo
    """
    setting = _setting(model, batch, image_size, local_size, num_local, precision)
    typer.echo(compare_peaks(out, objective, setting, only, compiled).read_text())


def compare_peaks(out: Path, objective: str, setting: Any, only: str = '', compiled: bool = False) -> Path:
    """Measure by what the process of every contender grows, from before the model is built.

    Raises:
        ValueError: If the objective is unknown, or a compiler would be part of what is measured.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from unittest.mock import patch

    from .engine import add
    from .others import find, for_each

    on_gpu = setting.device.startswith('cuda')
    if compiled and not on_gpu:
        raise ValueError(
            'the compiler takes memory of the same process: measure compiled steps on a GPU, or leave '
            '--compiled out'
        )
    setting = replace(setting, fused=True)  # what attention keeps on a GPU; time does not matter here

    def measure(name: str) -> int:
        if on_gpu:  # the allocator counts its own tensors exactly
            return step_peak(objective, name, setting)
        # glibc: freed tensors go back to the system instead of staying with the process as gaps.
        with patch.dict('os.environ', MALLOC_MMAP_THRESHOLD_=str(128 * 1024)):
            context = multiprocessing.get_context('spawn')
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                return pool.submit(step_peak, objective, name, setting).result()

    peaks, absent = for_each(find(objective, compiled), measure, only)
    full = [bytes_ for name, bytes_ in peaks.items() if 'all weights' in name]
    columns = {'GB': {name: bytes_ / 1e9 for name, bytes_ in peaks.items()}}
    if full:
        columns['% of all weights'] = {name: 100 * bytes_ / full[-1] for name, bytes_ in peaks.items()}
    return add(
        out,
        'peak',
        'weights, gradients, optimizer and activations of one step on real images with fused attention; on a '
        'CPU each contender has a process of its own. Shares are of the last row that trains all weights.',
        {**setting.describe(objective), 'only': only, 'compiled': compiled},
        columns,
        absent,
    )


def step_peak(objective: str, name: str, setting: Any) -> int:
    """Bytes that a step needs at most with the optimizer's averages: growth of the process or the GPU."""
    import gc

    import torch

    from ..tables.meter import Meter
    from .others import find

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
