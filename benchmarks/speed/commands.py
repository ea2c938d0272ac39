"""Commands that measure training steps beside others: `speed` and `peak`."""

from pathlib import Path
from typing import Annotated, Any

import typer

RESULTS = Path('benchmarks/results')
_OUT = Annotated[Path, typer.Option(help='Folder of the results.')]
_REPEATS = Annotated[int, typer.Option(help='Rounds that count.')]
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


def _setting(*sizes: Any, precision: str) -> Any:
    from .setting import Setting

    return Setting(*sizes, precision=precision or None)  # type: ignore[arg-type]


def speed(
    objective: _OBJECTIVE = 'mae',
    model: _MODEL = 'vit_base_patch16_224',
    batch: _BATCH = 8,
    image_size: _IMAGE_SIZE = 224,
    local_size: _LOCAL_SIZE = 96,
    num_local: _NUM_LOCAL = 8,
    precision: _PRECISION = '',
    repeats: _REPEATS = 5,
    only: _ONLY = '',
    compiled: _COMPILED = False,
    out: _OUT = RESULTS,
) -> None:
    """Time training steps beside those of PEFT, Hugging Face, lightly and TorchGeo, in turns.

    Example: explora-bench speed --objective dinov2 --batch 2 --only explora_geo
    """
    from .engine import compare_steps

    setting = _setting(model, batch, image_size, local_size, num_local, precision=precision)
    typer.echo(compare_steps(out, objective, setting, repeats, only, compiled).read_text())


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
    out: _OUT = RESULTS,
) -> None:
    """Measure the memory of a training step beside others, each in a process of its own.

    Example: explora-bench peak --objective dinov2 --model vit_large_patch16_224 --only explora_geo
    """
    from .engine import compare_peaks

    setting = _setting(model, batch, image_size, local_size, num_local, precision=precision)
    typer.echo(compare_peaks(out, objective, setting, only, compiled).read_text())
