"""The command line `explora-bench`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from explora_geo._cli_console import run_app

from .speed import steps, waits
from .tables.commands import COMMANDS, RESULTS

app = typer.Typer(
    name='explora-bench',
    help='Measurements behind the numbers of explora_geo.',
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for name, command in COMMANDS.items():
    app.command(name)(command)
for command in (steps.speed, steps.peak, waits.loading, waits.features):
    app.command()(command)


@app.command()
def memory(
    model: Annotated[str, typer.Option(help='Backbone.')] = 'vit_large_patch14_dinov2',
    adaptation: Annotated[list[str] | None, typer.Option(help='Notation; repeat for several.')] = None,
    out: steps.OUT = RESULTS,
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
    out: Annotated[Path, typer.Argument(help='File to write (.safetensors).')],
) -> None:
    """Write the quantized file of a source model and print its loss table.

    Example: explora-bench export-source runs/source model.safetensors
    """
    from .export_source import export_source as export

    typer.echo(export(run, out))


def main() -> None:
    """Run the command line; user errors become one sentence and exit code 2."""
    run_app(app, sys.argv[1:])


if __name__ == '__main__':
    main()
