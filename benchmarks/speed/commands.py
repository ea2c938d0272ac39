"""The commands of `explora-bench` that measure speed and memory."""

from pathlib import Path
from typing import Annotated, Any

import typer

RESULTS = Path('benchmarks/results')
TILES = Path('tests/data/eurosat_rgb')
_OUT = Annotated[Path, typer.Option(help='Folder of the results.')]
_ONLY = Annotated[str, typer.Option(help='Only contenders whose name holds this text, and the first.')]
_REPEATS = Annotated[int, typer.Option(help='Rounds that count.')]
_COMPILED = Annotated[bool, typer.Option(help='Also steps with torch.compile, which takes minutes first.')]
# The work of a training step
_MODEL = Annotated[str, typer.Option(help='Backbone.')]
_BATCH = Annotated[int, typer.Option(help='Images per step.')]
_IMAGE_SIZE = Annotated[int, typer.Option(help='Side of images and global crops, pixels.')]
_LOCAL_SIZE = Annotated[int, typer.Option(help='Side of local crops, pixels.')]
_NUM_LOCAL = Annotated[int, typer.Option(help='Local crops per image.')]
_PRECISION = Annotated[str, typer.Option(help='bf16 or fp32.')]
_OBJECTIVE = Annotated[str, typer.Option(help='mae or dinov2.')]


def register(app: typer.Typer) -> None:
    """Add the commands to a command line."""
    for command in (speed, peak, sweep, startup):
        app.command()(command)


def _setting(model: str, batch: int, image_size: int, local_size: int, num_local: int, precision: Any) -> Any:
    from benchmarks.speed.setting import Setting

    return Setting(model, batch, image_size, local_size, num_local, precision=precision)


def speed(
    objective: _OBJECTIVE = 'mae',
    model: _MODEL = 'vit_base_patch16_224',
    batch: _BATCH = 8,
    image_size: _IMAGE_SIZE = 224,
    local_size: _LOCAL_SIZE = 96,
    num_local: _NUM_LOCAL = 8,
    precision: _PRECISION = 'bf16',
    repeats: _REPEATS = 5,
    only: _ONLY = '',
    compiled: _COMPILED = False,
    out: _OUT = RESULTS,
) -> None:
    """Time training steps beside those of PEFT, Hugging Face, lightly and TorchGeo, in turns.

    Example: explora-bench speed --objective dinov2 --batch 2 --only explora_geo
    """
    from benchmarks.speed.steps import compare_steps

    setting = _setting(model, batch, image_size, local_size, num_local, precision)
    typer.echo(compare_steps(out, objective, setting, repeats, only, compiled).read_text())


def peak(
    objective: _OBJECTIVE = 'mae',
    model: _MODEL = 'vit_base_patch16_224',
    batch: _BATCH = 8,
    image_size: _IMAGE_SIZE = 224,
    local_size: _LOCAL_SIZE = 96,
    num_local: _NUM_LOCAL = 8,
    precision: _PRECISION = 'bf16',
    only: _ONLY = '',
    compiled: _COMPILED = False,
    out: _OUT = RESULTS,
) -> None:
    """Measure the memory of a training step beside others, each in a process of its own.

    Example: explora-bench peak --objective dinov2 --model vit_large_patch16_224 --only explora_geo
    """
    from benchmarks.speed.peak import compare_peaks

    setting = _setting(model, batch, image_size, local_size, num_local, precision)
    typer.echo(compare_peaks(out, objective, setting, only, compiled).read_text())


def sweep(
    images: Annotated[Path, typer.Argument(help='Folder with train and test folders of classes.')] = TILES,
    width: Annotated[int, typer.Option(help='Width of the tokens.')] = 192,
    out: _OUT = RESULTS,
) -> None:
    """Time the 28 linear probes of the paper's sweep on cached features.

    Example: explora-bench sweep data/eurosat_rgb --width 1024
    """
    from benchmarks.speed.sweep import time_sweep

    typer.echo(time_sweep(out, images, width).read_text())


def startup(
    model: Annotated[str, typer.Option(help='Backbone of the adapter files.')] = 'vit_large_patch14_dinov2',
    adaptation: Annotated[str, typer.Option(help='What trains in it.')] = '[L]-r32',
    repeats: _REPEATS = 5,
    out: _OUT = RESULTS,
) -> None:
    """Time imports, the help of the command line, and adapter files.

    Example: explora-bench startup --repeats 3
    """
    from benchmarks.speed.startup import time_startup

    typer.echo(time_startup(out, model, adaptation, repeats).read_text())
