"""The command line `explora-geo`."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from explora_geo.commands.adapt import adapt
from explora_geo.commands.doctor import doctor
from explora_geo.commands.export import export
from explora_geo.commands.fit import PASS_ON, fit, predict, test, validate
from explora_geo.commands.map import make
from explora_geo.commands.probe import probe

app = typer.Typer(
    name='explora-geo',
    help='Adapt pre-trained vision transformers to your own satellite archive (ExPLoRA).',
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={'help_option_names': ['-h', '--help']},
)
adapter_app = typer.Typer(help='Look into adapter files and merge them.', no_args_is_help=True)
weights_app = typer.Typer(help='Look into weights of any known layout.', no_args_is_help=True)
console = Console()


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
    import torch

    from explora_geo.adaptation import ExPLoRAConfig, explora, trainable_summary
    from explora_geo.models.builders import create_vit
    from explora_geo.objectives.mae import MAE

    if objective not in ('none', 'mae'):
        raise ValueError(f'objective must be none or mae, got {objective!r}')
    config = ExPLoRAConfig.parse(
        adaptation, alpha=alpha, targets=tuple(targets.split(',')), train_norms=norms
    )
    with torch.device('meta'):
        vit = create_vit(backbone, tokenizer=tokenizer)
        model = vit if objective == 'none' else MAE(vit)
        decoder = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in vit.parameters())
        total = vit.num_parameters + decoder
        explora(vit, config.with_extra(vit.patch_embed.fresh))
        counts = trainable_summary(vit)
        if isinstance(model, MAE):
            # From the decoder that RGB weights of the same backbone carry.
            rgb = MAE(create_vit(backbone)).extra_state()
            model.load_pretrained(rgb)
            counts |= {f'decoder {part}': n for part, n in trainable_summary(model.decoder).items()}
    trained = sum(counts.values())
    title = ', '.join(
        [f'{adaptation} on {backbone}']
        + ([tokenizer] if tokenizer != 'patch' else [])
        + (['with the MAE decoder'] if objective == 'mae' else [])
    )
    table = Table('part', 'parameters', title=escape(title), title_justify='left', min_width=44)
    table.columns[1].justify = 'right'
    for part, count in counts.items():
        table.add_row(part, f'{count:,}')
    table.add_section()
    table.add_row('trainable', f'{trained:,}')
    console.print(table)
    console.print(
        f'{trained:,} of {total:,} parameters train ({trained / total:.1%}): {trained / 1e6:.3f}M',
        highlight=False,
    )


@adapter_app.command('info')
def adapter_info(file: Annotated[Path, typer.Argument(help='Adapter file.')]) -> None:
    """Show what an adapter file holds and which base it belongs to.

    Example: explora-geo adapter info runs/demo/adapter.safetensors
    """
    from explora_geo.checkpoints import read_adapter
    from explora_geo.models.normalization import describe

    header, state = read_adapter(file)
    table = Table(show_header=False, title=str(file))
    rows = {
        'backbone': f'{header.backbone}, {header.img_size} px, patch {header.patch_size}',
        'adaptation': header.explora_config.notation(),
        'configuration': ', '.join(f'{k}={v}' for k, v in header.config.items()),
        'bands': ', '.join(header.bands),
        'normalization': header.normalization and describe(header.normalization, header.bands),
        'base SHA-256': header.base_sha256,
        'written by': f'explora_geo {header.version}',
        'tensors': f'{len(state)}, {sum(t.numel() for t in state.values()):,} numbers',
        'size': f'{file.stat().st_size / 1e6:.2f} MB',
    }
    for name, value in rows.items():
        table.add_row(name, escape(value or 'not stated'))
    console.print(table)


@adapter_app.command('merge')
def adapter_merge(
    file: Annotated[Path, typer.Argument(help='Adapter file.')],
    base: Annotated[str, typer.Option(help='Base weights: a file or timm/<name>.')],
    out: Annotated[Path, typer.Option(help='Model file to write (.safetensors).')],
    strength: Annotated[float, typer.Option(help='Share of what the adapter adds, from 0 to 1.')] = 1.0,
) -> None:
    """Merge an adapter into its base: a plain model with timm's keys.

    Example: explora-geo adapter merge adapter.safetensors --base base.safetensors --out model.safetensors
    """
    from explora_geo.checkpoints import merge_adapter

    header = merge_adapter(file, base, out, strength)
    console.print(
        f'{out}: {header.backbone} with {header.explora_config.notation()} merged',
        markup=False,
        soft_wrap=True,
    )


@weights_app.command('inspect')
def weights_inspect(
    weights: Annotated[str, typer.Argument(help='File, timm/<name>, or a name that weights list shows.')],
) -> None:
    """Show what weights are: layout, backbone, bands, patch, size, and what stands beside the backbone.

    Example: explora-geo weights inspect ViTTiny8_Weights.TINY_IMAGENET_MAE
    """
    from explora_geo.checkpoints.inspect import describe_weights

    table = Table(show_header=False, title=escape(weights))
    for name, value in describe_weights(weights).items():
        table.add_row(name, escape(value))
    console.print(table)


@weights_app.command('list')
def weights_list() -> None:
    """List the weights that are known by name, their backbone, tokenizer and licence.

    Example: explora-geo weights list
    """
    from explora_geo.models.weights import all_weights

    for name, entry in all_weights().items():  # one line each, whole, so that names can be copied
        meta = entry.meta
        parts = [meta['model'], meta.get('tokenizer', 'patch'), 'with decoder' if meta['decoder'] else '']
        line = f'{name}: {", ".join(filter(None, parts))}; {meta["licence"]}'
        console.print(line, markup=False, highlight=False, soft_wrap=True)


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
        console.print(
            f'{out}: {len(source):,} tiles of {header.shape[1:]}, {header.dtype}, would take '
            f'{header.nbytes / 1e6:,.1f} MB; bands {", ".join(header.bands)}',
            markup=False,
            soft_wrap=True,
        )
        return
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task('packing', total=len(source))
        for done, _ in write(source, out):
            progress.update(task, completed=done)
    packed = PackedDataset(out)
    megabytes = sum(f.stat().st_size for f in out.iterdir()) / 1e6
    seconds = time.perf_counter() - start
    console.print(
        f'{out}: {len(packed)} tiles of {packed.header.shape[1:]}, {packed.header.dtype}, '
        f'{megabytes:,.1f} MB; {packed.skipped_count} skipped; every tile compared; {seconds:.1f} s',
        markup=False,
        soft_wrap=True,
    )


def _names(text: str) -> list[str] | None:
    return [name.strip() for name in text.split(',')] if text else None


#: `explora-geo --help` as a table of contents, in the order in which a project goes.
_CONTENTS: dict[str, tuple[tuple[str, Callable[..., None]], ...]] = {
    'Start': (('adapt', adapt), ('doctor', doctor)),
    'Plan and prepare': (('params', params), ('pack', pack)),
    'Train': (('fit', fit), ('validate', validate), ('test', test), ('predict', predict)),
    'Measure and map': (('probe', probe), ('map', make)),
    'Files': (('export', export),),
}
for _panel, _commands in _CONTENTS.items():
    for _name, _command in _commands:
        _settings = PASS_ON if _panel == 'Train' else None
        app.command(_name, context_settings=_settings, rich_help_panel=_panel)(_command)
app.add_typer(adapter_app, name='adapter', rich_help_panel='Files')
app.add_typer(weights_app, name='weights', rich_help_panel='Files')


def main(argv: list[str] | None = None) -> None:
    """Run `explora-geo`.

    Args:
        argv: Arguments without the program name; `sys.argv[1:]` if None.
    """
    run_app(app, list(sys.argv[1:] if argv is None else argv))


def run_app(application: typer.Typer, args: list[str]) -> None:
    """Run a command line; user errors become one sentence and exit code 2.

    Args:
        application: Commands.
        args: Arguments; `--debug` anywhere shows tracebacks.
    """
    debug = '--debug' in args
    try:
        application([a for a in args if a != '--debug'])
    except (ValueError, OSError, ImportError) as error:
        _fail(error, debug)
    except Exception as error:
        # jsonargparse and Lightning are imported only by some commands, so their errors are known by name.
        if type(error).__name__ not in ('ArgumentError', 'MisconfigurationException'):
            raise
        _fail(error, debug)


def _fail(error: Exception, debug: bool) -> None:
    if debug:
        raise error
    message = f'[bold red]error:[/] {escape(_sentence(error))}'
    Console(stderr=True).print(message, soft_wrap=True, highlight=False)
    raise SystemExit(2) from error


def _sentence(error: Exception) -> str:
    """The user's part of an error message, on one line."""
    plain = error.strerror if isinstance(error, OSError) and error.filename is None else None
    text = ' '.join((plain or str(error)).split())  # without the number of the error
    if text.startswith('Caught ') and 'DataLoader worker process' in text:
        # torch puts the traceback of the worker into the message, and the error itself at its end
        text = str(error).strip().splitlines()[-1].partition(': ')[2]
    unknown = re.search(r"Option '([^']+)' is not accepted|Key '([^']+)' is not expected", text)
    if unknown is not None:  # jsonargparse lists every alternative it tried around this
        key = unknown[1] or unknown[2]
        return (
            f'unknown key {key!r} in the configuration: '
            'correct it, explora-geo fit --print_config shows the keys that exist'
        )
    # The innermost of the errors it wraps, without the values it repeats around them
    inner = re.search(r".*Errors: - (.+?)(?: - Expected a <class 'NoneType'>| Given value type:)", text)
    if inner is not None:
        return re.sub(r"^Problem with given class_path '[^']*': ", '', inner[1]).replace(
            'Expected a typing.Literal', 'expected one of '
        )
    return text
