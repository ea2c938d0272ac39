"""The command line `explora-bench`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from explora_geo._cli_console import run_app

from .speed.commands import peak, speed
from .tables.commands import COMMANDS

app = typer.Typer(
    name='explora-bench',
    help='Measurements behind the numbers of explora_geo.',
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for name, command in {**COMMANDS, 'speed': speed, 'peak': peak}.items():
    app.command(name)(command)


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
