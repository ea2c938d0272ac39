"""The command line `explora-geo`: commands parse options, call the library and print."""

import json
import os
import sys
import webbrowser
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from typer import Argument, Option

from explora_geo._cli_console import bars, console, names, run_app, say, show
from explora_geo._cli_models import adapter_app, export, map_scene, probe, pull, push, weights_app

app = typer.Typer(
    name='explora-geo',
    help='Adapt pre-trained vision transformers to your own satellite archive (ExPLoRA).',
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={'help_option_names': ['-h', '--help']},
)
# Settings of commands whose options LightningCLI parses
_PASS_ON = {'allow_extra_args': True, 'ignore_unknown_options': True, 'help_option_names': []}


@app.command(rich_help_panel='Start')
def adapt(
    archive: Annotated[list[str], Argument(help='Folder of tiles, a pack, a list of files, or scenes.')],
    weights: Annotated[
        str, Option(help='Source: a file, timm/<name>, hf:<owner>/<name>, or a name from `weights list`.')
    ] = 'timm/vit_small_patch14_dinov2.lvd142m',
    adaptation: Annotated[
        str | None, Option(help='Objective and trained parts: {D-ExPLoRA,M-ExPLoRA,anchor,align}-[L]-r32.')
    ] = None,
    minutes: Annotated[float | None, Option(help='Length in minutes; 30 by default.')] = None,
    steps: Annotated[int | None, Option(help='Length in optimizer steps.')] = None,
    epochs: Annotated[float | None, Option(help='Length in passes over the archive.')] = None,
    bands: Annotated[str | None, Option(help='Bands to use, in order, separated by commas.')] = None,
    labels: Annotated[
        Path | None, Option(help='Labeled tiles for scores and the strength; never trained on.')
    ] = None,
    retention: Annotated[Path | None, Option(help='Labeled natural images, to measure forgetting.')] = None,
    strength: Annotated[
        str, Option(help='Share of the adapter to keep, 0 to 1; auto: best on validation.')
    ] = 'auto',
    config: Annotated[Path | None, Option(help='YAML for `fit`; its entries take precedence.')] = None,
    out: Annotated[Path, Option(help='Output folder of the run.')] = Path('runs/adapt'),
    beside: Annotated[
        Path | None, Option(help='Another adapter of the same weights to score alongside.')
    ] = None,
    quick: Annotated[
        bool, Option('--quick', help='A short trial: no orientations, no intermediate strengths.')
    ] = False,
    quoted: Annotated[
        Path | None, Option(help='JSON of scores measured elsewhere; the report quotes its rivals.')
    ] = None,
    force: Annotated[bool, Option('--force', help='Adapt against advice.')] = False,
    no_open: Annotated[bool, Option('--no-open', help='Do not open the report.')] = False,
) -> None:
    """Adapt a backbone to an archive of unlabeled images, and report whether that helped.

    The run folder gets adapter.safetensors, config.yaml, report.json and report.html. Repeat the command to
    resume an interrupted run. Example:

    explora-geo adapt tests/data/eurosat_rgb/train --labels tests/data/eurosat_rgb/test --minutes 2
    --weights ViTSmall14_Weights.LVD142M_DINOV2_DEPTH6 --out runs/adapt
    """
    from explora_geo._adapt import adapt as run

    given = {'minutes': minutes, 'steps': steps, 'epochs': epochs}
    lengths = [f'{n} {unit}' for unit, n in given.items() if n is not None]
    if len(lengths) > 1:
        raise ValueError('pass only one of --minutes, --steps and --epochs')
    scenes = archive[0] if len(archive) == 1 else archive
    length = lengths[0] if lengths else '30 minutes'
    settings = (out, weights, adaptation, length, bands, labels, retention, config, strength)
    adapted = run(scenes, *settings, beside=beside, quick=quick, quoted=quoted, force=force, say=say)
    verdict = adapted.report['verdict']
    console.print(
        f'[bold]{escape(verdict["text"])}[/bold]', escape(verdict['advice']), sep='\n', highlight=False
    )
    if not no_open and opens(os.environ, sys.stdout.isatty(), sys.platform):
        _open(adapted.page)
    say(str(adapted.page.resolve()))


def opens(environment: Mapping[str, str], terminal: bool, platform: str) -> bool:
    """Return whether to open a page unasked: in a terminal on a local desktop, not over SSH or in CI."""
    desktop = platform in ('darwin', 'win32') or any(map(environment.get, ('DISPLAY', 'WAYLAND_DISPLAY')))
    return terminal and desktop and not any(map(environment.get, ('CI', 'SSH_CONNECTION')))


def _open(page: Path) -> None:
    """Open a page in a desktop browser, if there is one."""
    with suppress(webbrowser.Error, OSError):
        browser = webbrowser.get()
        if type(browser) is not webbrowser.GenericBrowser:  # it would take over the terminal
            browser.open(page.resolve().as_uri())


@app.command(rich_help_panel='Start')
def doctor(
    as_json: Annotated[bool, Option('--json', help='Print JSON for bug reports and scripts.')] = False,
) -> None:
    """Show versions, devices, extras and cached weights; exit with 1 if something needs fixing.

    Example: explora-geo doctor --json
    """
    from explora_geo.doctor import diagnose

    found = diagnose()
    if as_json:
        say(json.dumps(found, indent=1))
        raise typer.Exit(1 if found['problems'] else 0)
    versions = {
        name: f'{row["version"] or "missing"} {row["needed"]}' for name, row in found['packages'].items()
    }
    show('Versions', {'Python': found['python'], **versions})
    state = dict(found['devices'])
    for name, row in found['extras'].items():
        lacks = f'missing {", ".join(row["missing"])}: {row["install"]}' if row['missing'] else 'installed'
        state[f'extra {name}'] = f'{lacks} ({row["use"]})'
    here = {name: row for name, row in found['weights'].items() if row['megabytes']}
    for name, row in here.items():
        place = 'shipped' if row['shipped'] else 'in the cache'
        state[name] = f'{place}, {row["megabytes"]:,.1f} MB, {row["license"]}'
    others = len(found['weights']) - len(here)
    state['other weights'] = f'{others} available by name: explora-geo weights list'
    show('Devices, extras, weights', {**state, 'cache': found['cache']})
    for problem in found['problems']:
        console.print(f'[bold red]problem:[/] {escape(problem)}', highlight=False)
    if found['problems']:
        raise typer.Exit(1)
    console.print('No problems found.')


@app.command(rich_help_panel='Plan and prepare')
def params(
    adaptation: Annotated[str, Argument(help='Notation such as "D-ExPLoRA-[L]-r32" or full.')],
    backbone: Annotated[str, Option(help='Backbone by timm name.')] = 'vit_large_patch14_dinov2',
    alpha: Annotated[float | None, Option(help='LoRA alpha; equals the rank by default.')] = None,
    targets: Annotated[str, Option(help='Matrices with LoRA, of q,k,v,proj,fc1,fc2.')] = 'q,v',
    norms: Annotated[bool, Option(help='Train the norms.')] = True,
    tokenizer: Annotated[str, Option(help='patch, group-channel or temporal.')] = 'patch',
    objective: Annotated[str, Option(help='mae to count its decoder as well, or none.')] = 'none',
) -> None:
    """Count the parameters that an adaptation trains, without allocating the weights.

    For band groups the count assumes RGB weights: their patch embeddings and prediction layers are trained
    from scratch. Examples:

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
    groups = '' if tokenizer == 'patch' else f', {tokenizer}'
    decoder = ', with the MAE decoder' if objective == 'mae' else ''
    title = f'{adaptation} on {backbone}{groups}{decoder}'
    show(title, {**count.parts, 'trainable': count.trained}, numbers=True)
    share = count.trained / count.total
    say(f'{count.trained:,} of {count.total:,} parameters trained ({share:.1%}): {count.trained / 1e6:.3f}M')


@app.command(rich_help_panel='Plan and prepare')
def pack(
    root: Annotated[Path, Argument(help='Folder of tiles, with or without a subfolder per class.')],
    out: Annotated[Path, Argument(help='Output folder of the pack.')],
    size: Annotated[int | None, Option(help='Side of the tiles, pixels; as in the files by default.')] = None,
    bands: Annotated[str, Option(help='Bands to keep, such as B04,B03,B02; all if empty.')] = '',
    file_bands: Annotated[str, Option(help='Names of all bands in file order, if not in the files.')] = '',
    dry_run: Annotated[bool, Option('--dry-run', help='Print the size of the pack and stop.')] = False,
) -> None:
    """Copy an archive into a single pixel file that reads many times faster than the tiles.

    Repeat the command to resume after an interruption, and once more to check every tile. Give the pack in
    place of the folder: --data.init_args.root=OUT. Example:

    explora-geo pack tests/data/eurosat_rgb/train runs/pack
    """
    import time

    from explora_geo.datasets import FolderDataset
    from explora_geo.datasets.packed import PackedDataset, header_of
    from explora_geo.datasets.packed import pack as write

    start = time.perf_counter()
    source = FolderDataset(root, bands=names(bands), file_bands=names(file_bands), size=size)
    if dry_run:
        header = header_of(source)
        say(
            f'{out}: {len(source):,} tiles of {header.shape[1:]}, {header.dtype}, would take '
            f'{header.nbytes / 1e6:,.1f} MB; bands {", ".join(header.bands)}'
        )
        return
    with bars() as progress:
        for done, total in write(source, out):
            progress('packing', done, total)
    packed = PackedDataset(out)
    megabytes = sum(f.stat().st_size for f in out.iterdir()) / 1e6
    seconds = time.perf_counter() - start
    say(
        f'{out}: {len(packed)} tiles of {packed.header.shape[1:]}, {packed.header.dtype}, '
        f'{megabytes:,.1f} MB; {packed.skipped_count} skipped; every tile verified; {seconds:.1f} s'
    )


@app.command(context_settings=_PASS_ON, rich_help_panel='Train')
def fit(context: typer.Context) -> None:
    """Pre-train or tune from a YAML file (LightningCLI); --dry-run shows the plan without training.

    Example: explora-geo fit --config tests/conf/pretrain_mae_folder.yaml --dry-run
    """
    if '--dry-run' not in context.args:
        return lightning(context)
    from explora_geo.configured import plan

    rows = plan(['fit', *(a for a in context.args if a != '--dry-run')])
    return show('Plan (nothing was trained)', rows)


def lightning(context: typer.Context) -> None:
    """Run the LightningCLI subcommand of the same name as the command."""
    from explora_geo.configured import run

    run([str(context.info_name), *context.args])


for _name, _about in (
    ('validate', 'Evaluate a checkpoint on validation data.'),
    ('test', 'Measure a tuned model on test data.'),
    ('predict', 'Predict with a tuned model.'),
):
    _help = f'{_about}\n\nExample: explora-geo {_name} --config run.yaml --ckpt_path last.ckpt'
    app.command(_name, help=_help, context_settings=_PASS_ON, rich_help_panel='Train')(lightning)
for _name, _panel, _command in (
    ('probe', 'Measure and map', probe),
    ('map', 'Measure and map', map_scene),
    ('export', 'Files', export),
    ('push', 'Files', push),
    ('pull', 'Files', pull),
):
    app.command(_name, rich_help_panel=_panel)(_command)
app.add_typer(adapter_app, name='adapter', rich_help_panel='Files')
app.add_typer(weights_app, name='weights', rich_help_panel='Files')


def main(argv: list[str] | None = None) -> None:
    """Run `explora-geo`.

    Args:
        argv: Arguments without the program name; `sys.argv[1:]` if None.
    """
    run_app(app, list(sys.argv[1:] if argv is None else argv))
