"""The command line `explora-bench`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from explora_geo.cli import run_app

app = typer.Typer(
    name='explora-bench',
    help='Measurements behind the numbers of explora_geo.',
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _commands() -> None:
    """Measurements behind the numbers of explora_geo."""


@app.command()
def search(
    config: Annotated[Path, typer.Argument(help='YAML file of the rows to try.')],
    out: Annotated[Path, typer.Option(help='Folder of the results.')] = Path('benchmarks/results'),
    rows: Annotated[str, typer.Option(help='Only rows whose name holds this text.')] = '',
) -> None:
    """Try adaptation recipes on a validation part and tabulate what they bought.

    Finished rows are kept and not run again. Example:
    explora-bench search benchmarks/conf/search_eurosat_mae.yaml
    """
    from benchmarks.search import run_search

    run_search(config, out, rows)


@app.command()
def packing(
    model: Annotated[str, typer.Option(help='Backbone.')] = 'vit_tiny_patch8_64',
    images: Annotated[int, typer.Option(help='Images per step.')] = 8,
    global_size: Annotated[int, typer.Option(help='Side of the two global crops, pixels.')] = 64,
    local_size: Annotated[int, typer.Option(help='Side of local crops, pixels.')] = 32,
    num_local: Annotated[int, typer.Option(help='Local crops per image.')] = 8,
    repeats: Annotated[int, typer.Option(help='Turns, of which the fastest counts.')] = 5,
    out: Annotated[Path, typer.Option(help='Folder of the results.')] = Path('benchmarks/results'),
) -> None:
    """Time crops of two sizes: a call per size, nested tensors, FlexAttention, block-diagonal masks."""
    from benchmarks.packing import measure_packing

    path = measure_packing(out, model, images, global_size, local_size, num_local, repeats)
    typer.echo(path.read_text())


@app.command('export-source')
def export_source(
    run: Annotated[Path, typer.Argument(help='Folder of a full pre-training run.')],
    out: Annotated[Path, typer.Argument(help='Half-precision file to write (.safetensors).')],
) -> None:
    """Write the file of the shipped source model and print its loss table."""
    from benchmarks.export_source import export_source as export

    typer.echo(export(run, out))


@app.command()
def labels(
    plan: Annotated[Path, typer.Argument(help='YAML file of backbones, ways of tuning and budgets.')],
    out: Annotated[Path, typer.Option(help='Folder of the results.')] = Path('benchmarks/results'),
) -> None:
    """Tune backbones with few and all labels and tabulate the test accuracy; finished runs are kept.

    Example: explora-bench labels benchmarks/conf/labels_eurosat.yaml
    """
    from benchmarks.labels import run_labels

    typer.echo(run_labels(plan, out).read_text())


@app.command()
def picture(
    what: Annotated[str, typer.Argument(help='clouds, buildings or land-cover.')],
    source: Annotated[Path, typer.Argument(help='38-Cloud, SpaceNet sample, or a NAIP scene.')],
    out: Annotated[Path, typer.Option(help='Folder to write.')] = Path('runs/picture'),
    tiles: Annotated[Path, typer.Option(help='EuroSAT RGB for land-cover.')] = Path('tests/data/eurosat_rgb'),
    epochs: Annotated[int | None, typer.Option(help='Passes over the tiles.')] = None,
) -> None:
    """Tune on real images and map a held-out one.

    Example: explora-bench picture clouds data/38-Cloud
    """
    import json

    from benchmarks import segmentation

    length = {} if epochs is None else {'epochs': epochs}
    if what == 'land-cover':
        scores = segmentation.land_cover(source, tiles, out, **length)
    elif what in ('clouds', 'buildings'):
        scores = getattr(segmentation, what)(source, out, **length)
    else:
        raise ValueError(f'what must be clouds, buildings or land-cover, got {what!r}')
    typer.echo(json.dumps(scores))


@app.command('map-memory')
def map_memory(
    side: Annotated[int, typer.Option(help='Side of the scene, pixels.')] = 20_000,
    model: Annotated[str, typer.Option(help='Backbone, not trained.')] = 'vit_tiny_patch16_256',
) -> None:
    """Map a scene of 13 bands and tell the time and the highest memory of the process."""
    import json

    from benchmarks.map_memory import measure

    typer.echo(json.dumps(measure(side, model=model)))


def main() -> None:
    """Run the command line; user errors become one sentence and exit code 2."""
    run_app(app, sys.argv[1:])


if __name__ == '__main__':
    main()
