"""The command line `explora-bench`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from explora_geo._cli_console import run_app

from .tables.commands import COMMANDS, RESULTS

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

app = typer.Typer(
    name='explora-bench',
    help='Measurements behind the numbers of explora_geo.',
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for name, command in COMMANDS.items():
    app.command(name)(command)


def _measuring(measure: str, about: str) -> Callable[..., None]:
    def command(
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
        from .speed import engine
        from .speed.setting import Setting

        sizes: Any = (model, batch, image_size, local_size, num_local)
        setting = Setting(*sizes, precision=precision or None)  # type: ignore[misc,arg-type]
        file: Path = getattr(engine, measure)(out, objective, setting, repeats, only, compiled)
        typer.echo(file.read_text())

    command.__doc__ = about
    return command


_SPEED = """Time training steps beside those of PEFT, Hugging Face, lightly and TorchGeo, in turns.

Example: explora-bench speed --objective dinov2 --batch 2 --only explora_geo
"""
_PEAK = """Measure the memory of training steps beside others, each contender in a process of its own.

Example: explora-bench peak --objective dinov2 --model vit_large_patch16_224 --only explora_geo
"""
app.command('speed')(_measuring('compare_steps', _SPEED))
app.command('peak')(_measuring('compare_peaks', _PEAK))


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
