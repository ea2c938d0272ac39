"""The command line `explora-geo`: a command reads its options, calls the library, and prints."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from explora_geo._cli_adapt import adapt
from explora_geo._cli_console import console, run_app, say
from explora_geo._cli_models import adapter_app, export, map_scene, probe, pull, push, weights_app

app = typer.Typer(
    name='explora-geo',
    help='Adapt pre-trained vision transformers to your own satellite archive (ExPLoRA).',
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={'help_option_names': ['-h', '--help']},
)
# Settings of commands whose options LightningCLI reads itself
_PASS_ON = {'allow_extra_args': True, 'ignore_unknown_options': True, 'help_option_names': []}


def doctor(
    as_json: Annotated[bool, typer.Option('--json', help='Print JSON for bug reports and scripts.')] = False,
) -> None:
    """Show versions, devices, extras and cached weights; exit with 1 if something needs mending.

    Example: explora-geo doctor --json
    """
    from explora_geo.doctor import diagnose

    found = diagnose()
    if as_json:
        say(json.dumps(found, indent=1))
        raise typer.Exit(1 if found['problems'] else 0)
    table = Table('', 'version', 'needed', title='Versions', title_justify='left')
    table.add_row('Python', found['python'], '')
    for name, row in found['packages'].items():
        needed = f'{row["needed"]}' if row['ok'] else f'[bold red]{row["needed"]}[/]'
        table.add_row(name, row['version'] or '[bold red]missing[/]', needed)
    console.print(table)
    table = Table('', 'state', title='Devices, extras, weights', title_justify='left')
    table.columns[0].overflow = 'fold'
    for name, text in found['devices'].items():
        table.add_row(name, escape(text))
    table.add_section()
    for name, row in found['extras'].items():
        state = f'lacks {", ".join(row["missing"])}: {row["install"]}' if row['missing'] else 'installed'
        table.add_row(f'extra {name}', escape(f'{state} ({row["use"]})'))
    table.add_section()
    here = {name: row for name, row in found['weights'].items() if row['megabytes']}
    for name, row in here.items():
        place = 'shipped' if row['shipped'] else 'in the cache'
        table.add_row(name, f'{place}, {row["megabytes"]:,.1f} MB, {row["licence"]}')
    others = len(found['weights']) - len(here)
    table.add_row('other weights', f'{others} known by name, see explora-geo weights list')
    table.add_row('cache', escape(found['cache']))
    console.print(table)
    for problem in found['problems']:
        console.print(f'[bold red]problem:[/] {escape(problem)}', highlight=False)
    if found['problems']:
        raise typer.Exit(1)
    console.print('Nothing needs mending.')


def params(
    adaptation: Annotated[str, typer.Argument(help='Notation such as "D-ExPLoRA-[L]-r32" or full.')],
    backbone: Annotated[str, typer.Option(help='Backbone by timm name.')] = 'vit_large_patch14_dinov2',
    alpha: Annotated[float | None, typer.Option(help='LoRA alpha; the rank if not given.')] = None,
    targets: Annotated[str, typer.Option(help='Matrices with LoRA, of q,k,v,proj,fc1,fc2.')] = 'q,v',
    norms: Annotated[bool, typer.Option(help='Train the norms.')] = True,
    tokenizer: Annotated[str, typer.Option(help='patch, group-channel or temporal.')] = 'patch',
    objective: Annotated[str, typer.Option(help='mae to count its decoder too, else none.')] = 'none',
) -> None:
    """Count what an adaptation trains, without building the weights.

    Groups of bands are counted as they train from RGB weights: their patch embeddings and predictions start
    anew. Examples:

    explora-geo params "D-ExPLoRA-[L]-r32" --backbone vit_large_patch14_dinov2

    explora-geo params "M-ExPLoRA-[1,L]-r32" --backbone vit_large_patch8_96 --tokenizer group-channel
    --objective mae
    """
    from explora_geo.adaptation import ExPLoRAConfig
    from explora_geo.objectives.parameters import count_parameters

    config = ExPLoRAConfig.parse(
        adaptation, alpha=alpha, targets=tuple(targets.split(',')), train_norms=norms
    )
    count = count_parameters(config, backbone, tokenizer, objective)
    title = ', '.join(
        [f'{adaptation} on {backbone}']
        + ([tokenizer] if tokenizer != 'patch' else [])
        + (['with the MAE decoder'] if objective == 'mae' else [])
    )
    table = Table('part', 'parameters', title=escape(title), title_justify='left', min_width=44)
    table.columns[1].justify = 'right'
    for part, number in count.parts.items():
        table.add_row(part, f'{number:,}')
    table.add_section()
    table.add_row('trainable', f'{count.trained:,}')
    console.print(table)
    share = count.trained / count.total
    say(f'{count.trained:,} of {count.total:,} parameters train ({share:.1%}): {count.trained / 1e6:.3f}M')


def pack(
    root: Annotated[Path, typer.Argument(help='Folder of tiles, with one sub-folder per class or without.')],
    out: Annotated[Path, typer.Argument(help='Folder of the pack.')],
    size: Annotated[
        int | None, typer.Option(help='Side of the tiles; that of the files if not given.')
    ] = None,
    bands: Annotated[str, typer.Option(help='Bands to keep, such as B04,B03,B02; all if empty.')] = '',
    file_bands: Annotated[
        str, typer.Option(help='Names of all bands in file order, if files lack them.')
    ] = '',
    dry_run: Annotated[bool, typer.Option('--dry-run', help='Say how large the pack will be.')] = False,
) -> None:
    """Copy an archive into one file of pixels, which is read many times faster than the tiles.

    Run it again to go on after an interruption, and once more to check every tile. The pack goes where
    the folder went: --data.init_args.root=OUT. Example:

    explora-geo pack tests/data/eurosat_rgb/train runs/pack
    """
    import time

    from rich.progress import Progress

    from explora_geo.datasets import FolderDataset
    from explora_geo.datasets.packed import PackedDataset
    from explora_geo.datasets.packing import header_of
    from explora_geo.datasets.packing import pack as write

    start = time.perf_counter()
    source = FolderDataset(root, bands=_names(bands), file_bands=_names(file_bands), size=size)
    if dry_run:
        header = header_of(source)
        say(
            f'{out}: {len(source):,} tiles of {header.shape[1:]}, {header.dtype}, would take '
            f'{header.nbytes / 1e6:,.1f} MB; bands {", ".join(header.bands)}'
        )
        return
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task('packing', total=len(source))
        for done, _ in write(source, out):
            progress.update(task, completed=done)
    packed = PackedDataset(out)
    megabytes = sum(f.stat().st_size for f in out.iterdir()) / 1e6
    seconds = time.perf_counter() - start
    say(
        f'{out}: {len(packed)} tiles of {packed.header.shape[1:]}, {packed.header.dtype}, '
        f'{megabytes:,.1f} MB; {packed.skipped_count} skipped; every tile compared; {seconds:.1f} s'
    )


def _names(text: str) -> list[str] | None:
    return [name.strip() for name in text.split(',')] if text else None


def fit(context: typer.Context) -> None:
    """Pre-train or tune by a YAML file (LightningCLI); --dry-run shows the plan and trains nothing.

    Example: explora-geo fit --config tests/conf/pretrain_mae_folder.yaml --dry-run
    """
    if '--dry-run' not in context.args:
        return _run(context)
    from explora_geo.configured import plan

    table = Table(show_header=False, title='Plan, nothing was trained', title_justify='left')
    for name, text in plan(['fit', *(a for a in context.args if a != '--dry-run')]).items():
        table.add_row(name, escape(text))
    console.print(table)
    return None


def validate(context: typer.Context) -> None:
    """Evaluate a checkpoint on validation data.

    Example: explora-geo validate --config run.yaml --ckpt_path last.ckpt
    """
    _run(context)


def test(context: typer.Context) -> None:
    """Measure a tuned model on test data.

    Example: explora-geo test --config run.yaml --ckpt_path last.ckpt
    """
    _run(context)


def predict(context: typer.Context) -> None:
    """Predict with a tuned model.

    Example: explora-geo predict --config run.yaml --ckpt_path last.ckpt
    """
    _run(context)


def _run(context: typer.Context) -> None:
    from explora_geo.configured import run

    run([str(context.info_name), *context.args])


#: `explora-geo --help` as a table of contents, in the order in which a project goes.
_CONTENTS: dict[str, tuple[tuple[str, Callable[..., None]], ...]] = {
    'Start': (('adapt', adapt), ('doctor', doctor)),
    'Plan and prepare': (('params', params), ('pack', pack)),
    'Train': (('fit', fit), ('validate', validate), ('test', test), ('predict', predict)),
    'Measure and map': (('probe', probe), ('map', map_scene)),
    'Files': (('export', export), ('push', push), ('pull', pull)),
}
for _panel, _commands in _CONTENTS.items():
    for _name, _command in _commands:
        _settings = _PASS_ON if _panel == 'Train' else None
        app.command(_name, context_settings=_settings, rich_help_panel=_panel)(_command)
app.add_typer(adapter_app, name='adapter', rich_help_panel='Files')
app.add_typer(weights_app, name='weights', rich_help_panel='Files')


def main(argv: list[str] | None = None) -> None:
    """Run `explora-geo`.

    Args:
        argv: Arguments without the program name; `sys.argv[1:]` if None.
    """
    run_app(app, list(sys.argv[1:] if argv is None else argv))
