"""The commands of `explora-bench` that measure speed and memory."""

from pathlib import Path
from typing import Annotated, Any

import typer

RESULTS = Path('benchmarks/results')
TILES = Path('tests/data/eurosat_rgb')
_OUT = Annotated[Path, typer.Option(help='Folder of the results.')]
_ONLY = Annotated[
    str, typer.Option(help='Only contenders in whose name this regular expression is found, and the first.')
]
_REPEATS = Annotated[int, typer.Option(help='Rounds that count.')]
_COMPILED = Annotated[bool, typer.Option(help='Also steps with torch.compile, which takes minutes first.')]
# The work of a training step
_MODEL = Annotated[str, typer.Option(help='Backbone.')]
_BATCH = Annotated[int, typer.Option(help='Images per step.')]
_IMAGE_SIZE = Annotated[int, typer.Option(help='Side of images and global crops, pixels.')]
_LOCAL_SIZE = Annotated[int, typer.Option(help='Side of local crops, pixels.')]
_NUM_LOCAL = Annotated[int, typer.Option(help='Local crops per image.')]
_PRECISION = Annotated[
    str | None, typer.Option(help='bf16 or fp32; the faster one here if not given.', show_default=False)
]
_OBJECTIVE = Annotated[str, typer.Option(help='mae or dinov2.')]


def register(app: typer.Typer) -> None:
    """Add the commands to a command line."""
    for command in (speed, peak, sweep, startup, loading, processes, features, scaling):
        app.command()(command)


def _setting(model: str, batch: int, image_size: int, local_size: int, num_local: int, precision: Any) -> Any:
    from explora_geo.trainers.kernels import faster_precision

    from .setting import Setting

    precision = precision or ('bf16' if faster_precision() == 'bf16-mixed' else 'fp32')
    return Setting(model, batch, image_size, local_size, num_local, precision=precision)


def speed(
    objective: _OBJECTIVE = 'mae',
    model: _MODEL = 'vit_base_patch16_224',
    batch: _BATCH = 8,
    image_size: _IMAGE_SIZE = 224,
    local_size: _LOCAL_SIZE = 96,
    num_local: _NUM_LOCAL = 8,
    precision: _PRECISION = None,
    repeats: _REPEATS = 5,
    only: _ONLY = '',
    compiled: _COMPILED = False,
    out: _OUT = RESULTS,
) -> None:
    """Time training steps beside those of PEFT, Hugging Face, lightly and TorchGeo, in turns.

    Example: explora-bench speed --objective dinov2 --batch 2 --only explora_geo
    """
    from .steps import compare_steps

    setting = _setting(model, batch, image_size, local_size, num_local, precision)
    typer.echo(compare_steps(out, objective, setting, repeats, only, compiled).read_text())


def peak(
    objective: _OBJECTIVE = 'mae',
    model: _MODEL = 'vit_base_patch16_224',
    batch: _BATCH = 8,
    image_size: _IMAGE_SIZE = 224,
    local_size: _LOCAL_SIZE = 96,
    num_local: _NUM_LOCAL = 8,
    precision: _PRECISION = None,
    only: _ONLY = '',
    compiled: _COMPILED = False,
    out: _OUT = RESULTS,
) -> None:
    """Measure the memory of a training step beside others, each in a process of its own.

    Example: explora-bench peak --objective dinov2 --model vit_large_patch16_224 --only explora_geo
    """
    from .peak import compare_peaks

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
    from .sweep import time_sweep

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
    from .startup import time_startup

    typer.echo(time_startup(out, model, adaptation, repeats).read_text())


def loading(
    images: Annotated[Path, typer.Argument(help='Folder of training images.')] = TILES / 'train',
    objective: _OBJECTIVE = 'mae',
    steps: Annotated[int, typer.Option(help='Training steps that count in each round.')] = 10,
    workers: Annotated[list[int], typer.Option(help='Loading processes; repeat for several.')] = [0, 1, 2],  # noqa: B006 - read only
    precision: Annotated[
        str | None,
        typer.Option(help="Lightning's name; the faster one here if not given.", show_default=False),
    ] = None,
    repeats: Annotated[int, typer.Option(help='Rounds.')] = 3,
    out: _OUT = RESULTS,
) -> None:
    """Measure the share of training in which it waits for images, by the number of workers.

    Example: explora-bench loading --objective dinov2 --workers 0 --workers 2
    """
    from explora_geo.trainers.kernels import faster_precision

    from .loading import measure_loading

    chosen = precision or faster_precision()
    path = measure_loading(out, objective, images, steps, repeats, workers, chosen)
    typer.echo(path.read_text())


def processes(
    objective: _OBJECTIVE = 'mae',
    model: _MODEL = 'vit_small_patch16_224',
    batch: _BATCH = 8,
    image_size: _IMAGE_SIZE = 224,
    local_size: _LOCAL_SIZE = 96,
    num_local: _NUM_LOCAL = 8,
    precision: _PRECISION = None,
    adaptation: Annotated[str, typer.Option(help='What trains.')] = '[L]-r32',
    number: Annotated[int, typer.Option(help='Processes beside one.')] = 2,
    repeats: _REPEATS = 5,
    out: _OUT = RESULTS,
) -> None:
    """Compare one process with several that average their gradients, each with one thread.

    Example: explora-bench processes --objective dinov2 --batch 2
    """
    from .processes import compare_processes

    setting = _setting(model, batch, image_size, local_size, num_local, precision)
    typer.echo(compare_processes(out, objective, setting, repeats, number, adaptation).read_text())


def features(
    images: Annotated[Path, typer.Argument(help='Folder of class folders.')] = TILES / 'test',
    model: _MODEL = 'vit_tiny_patch8_64',
    count: Annotated[int, typer.Option(help='Images, evenly spaced.')] = 512,
    workers: Annotated[int, typer.Option(help='Processes that read images.')] = 0,
    batch: Annotated[int, typer.Option(help='Images per forward pass.')] = 64,
    repeats: _REPEATS = 5,
    out: _OUT = RESULTS,
) -> None:
    """Compare the extraction of features for probes with its forward passes alone.

    Example: explora-bench features --model vit_base_patch16_224 --count 64
    """
    from .features import compare_features

    typer.echo(compare_features(out, images, model, count, repeats, workers, batch).read_text())


def scaling(
    model: _MODEL = 'vit_small_patch16_224',
    batch: _BATCH = 4,
    image_size: _IMAGE_SIZE = 128,
    precision: _PRECISION = None,
    multispectral: Annotated[Path, typer.Option(help='13-band EuroSAT tiles.')] = Path(
        'tests/data/eurosat_ms'
    ),
    repeats: _REPEATS = 5,
    out: _OUT = RESULTS,
) -> None:
    """Time steps against image size, batch, frames and groups of bands, with a plot.

    Example: explora-bench scaling --model vit_tiny_patch16_224 --repeats 3
    """
    from .scaling import measure_scaling

    setting = _setting(model, batch, image_size, 96, 0, precision)
    typer.echo(measure_scaling(out, setting, multispectral, repeats).read_text())
