"""The command line `explora-bench`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from explora_geo.cli import run_app

from .paper import commands as paper
from .speed import commands as speed

RESULTS = Path('benchmarks/results')
_OUT = Annotated[Path, typer.Option(help='Folder of the results.')]

app = typer.Typer(
    name='explora-bench',
    help='Measurements behind the numbers of explora_geo.',
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


for part in (paper, speed):
    part.register(app)


@app.callback()
def _commands() -> None:
    """Measurements behind the numbers of explora_geo."""


@app.command()
def search(
    config: Annotated[Path, typer.Argument(help='YAML file of the rows to try.')],
    out: _OUT = RESULTS,
    rows: Annotated[str, typer.Option(help='Only rows whose name holds this text.')] = '',
) -> None:
    """Try adaptation recipes on a validation part and tabulate what they bought.

    Finished rows are kept and not run again. Example:
    explora-bench search benchmarks/conf/search_eurosat_mae.yaml
    """
    from .search import run_search

    run_search(config, out, rows)


@app.command()
def arms(
    config: Annotated[Path, typer.Argument(help='YAML file of the arms.')],
    out: _OUT = RESULTS,
    only: Annotated[str, typer.Option(help='Only arms whose name holds this text.')] = '',
) -> None:
    """Compare adaptations of one source that learn for the same number of steps.

    Finished arms and seeds are kept and not run again. Example:
    explora-bench arms benchmarks/conf/arms_eurosat_vit_tiny16_96.yaml
    """
    from .arms.run import run_arms

    run_arms(config, out, only)


@app.command()
def packing(
    model: Annotated[str, typer.Option(help='Backbone.')] = 'vit_tiny_patch8_64',
    images: Annotated[int, typer.Option(help='Images per step.')] = 8,
    global_size: Annotated[int, typer.Option(help='Side of the two global crops, pixels.')] = 64,
    local_size: Annotated[int, typer.Option(help='Side of local crops, pixels.')] = 32,
    num_local: Annotated[int, typer.Option(help='Local crops per image.')] = 8,
    repeats: Annotated[int, typer.Option(help='Turns, of which the fastest counts.')] = 5,
    out: _OUT = RESULTS,
) -> None:
    """Time crops of two sizes: a call per size, nested tensors, FlexAttention, block-diagonal masks.

    Example: explora-bench packing --images 8
    """
    from .packing import measure_packing

    path = measure_packing(out, model, images, global_size, local_size, num_local, repeats)
    typer.echo(path.read_text())


@app.command()
def memory(
    model: Annotated[str, typer.Option(help='Backbone.')] = 'vit_large_patch14_dinov2',
    adaptation: Annotated[list[str] | None, typer.Option(help='Notation; repeat for several.')] = None,
    out: _OUT = RESULTS,
) -> None:
    """Count what a student and the teacher that shares its frozen trunk store.

    Example: explora-bench memory --model vit_base_patch14_dinov2
    """
    from .memory import write_memory

    path = write_memory(out, model, adaptation or ['[L]-r32', '[L]-r64', '[1,L-1,L]-r64', '[]-r32', 'full'])
    typer.echo(path.read_text())


@app.command('export-source')
def export_source(
    run: Annotated[Path, typer.Argument(help='Folder of a full pre-training run.')],
    out: Annotated[Path, typer.Argument(help='Half-precision file to write (.safetensors).')],
) -> None:
    """Write the file of the shipped source model and print its loss table.

    Example: explora-bench export-source runs/source model.safetensors
    """
    from .export_source import export_source as export

    typer.echo(export(run, out))


@app.command()
def reading(
    out: _OUT = RESULTS,
    tiles: Annotated[Path, typer.Option(help='13-band EuroSAT tiles.')] = Path('tests/data/eurosat_ms'),
    images: Annotated[Path, typer.Option(help='RGB images.')] = Path('tests/data/eurosat_rgb/test'),
    seconds: Annotated[float, typer.Option(help='CPU seconds for each way of reading.')] = 3.0,
) -> None:
    """Measure how many tiles one core reads per second, in every way that is installed.

    Example: explora-bench reading --tiles data/EuroSAT_MS
    """
    from .reading import run_reading

    run_reading(out, tiles, images, seconds)


@app.command()
def bands(
    tiles: Annotated[Path, typer.Argument(help='13-band EuroSAT tiles by class.')] = Path(
        'tests/data/eurosat_ms'
    ),
    out: _OUT = RESULTS,
    steps: Annotated[int, typer.Option(help='Optimiser steps of 16 tiles.')] = 100,
    seeds: Annotated[int, typer.Option(help='Splits and runs.')] = 3,
) -> None:
    """Adapt the shipped RGB model to groups of Sentinel-2 bands: probes, losses, reconstructions.

    Example: explora-bench bands data/EuroSAT_MS
    """
    from .bands import run_bands

    run_bands(out, tiles, steps, seeds)


@app.command()
def dates(
    scenes: Annotated[Path, typer.Argument(help='Scenes of one place, dates in their names.')] = Path(
        'tests/data/naip'
    ),
    out: _OUT = RESULTS,
    steps: Annotated[int, typer.Option(help='Optimiser steps of 8 series.')] = 100,
) -> None:
    """Adapt the shipped RGB model to dates of one scene: losses and reconstructions.

    Example: explora-bench dates data/NAIP
    """
    from .dates import run_dates

    run_dates(out, scenes, steps)


@app.command()
def labels(
    plan: Annotated[Path, typer.Argument(help='YAML file of backbones, ways of tuning and budgets.')],
    out: _OUT = RESULTS,
) -> None:
    """Tune backbones with few and all labels and tabulate the test accuracy; finished runs are kept.

    Example: explora-bench labels benchmarks/conf/labels_eurosat.yaml
    """
    from .labels import run_labels

    typer.echo(run_labels(plan, out).read_text())


@app.command()
def picture(
    what: Annotated[str, typer.Argument(help='clouds, buildings or land-cover.')],
    source: Annotated[Path, typer.Argument(help='38-Cloud, SpaceNet sample, or a NAIP scene.')],
    out: Annotated[Path, typer.Option(help='Folder to write.')] = Path('runs/picture'),
    epochs: Annotated[int | None, typer.Option(help='Passes over the tiles.')] = None,
) -> None:
    """Tune on real images and map a held-out one.

    Example: explora-bench picture clouds data/38-Cloud
    """
    import json

    from . import segmentation

    length = {} if epochs is None else {'epochs': epochs}
    if what not in ('clouds', 'buildings', 'land-cover'):
        raise ValueError(f'what must be clouds, buildings or land-cover, got {what!r}')
    scores = getattr(segmentation, what.replace('-', '_'))(source, out, **length)
    typer.echo(json.dumps(scores))


@app.command('map-memory')
def map_memory(
    side: Annotated[int, typer.Option(help='Side of the scene, pixels.')] = 20_000,
    model: Annotated[str, typer.Option(help='Backbone, not trained.')] = 'vit_tiny_patch16_256',
) -> None:
    """Map a scene of 13 bands and tell the time and the highest memory of the process.

    Example: explora-bench map-memory --side 4000
    """
    import json

    from .map_memory import measure

    typer.echo(json.dumps(measure(side, model=model)))


def main() -> None:
    """Run the command line; user errors become one sentence and exit code 2."""
    run_app(app, sys.argv[1:])


if __name__ == '__main__':
    main()
