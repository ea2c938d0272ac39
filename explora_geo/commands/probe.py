"""`explora-geo probe`: what frozen features are worth."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer


def probe(
    data: Annotated[
        Path, typer.Argument(help='Folder with train/ and test/ class folders, or YAML of a data module.')
    ],
    weights: Annotated[str, typer.Option(help='Backbone: a file, a shipped name or timm/<name>.')],
    adapter: Annotated[Path | None, typer.Option(help='Adapter file made on these weights.')] = None,
    model: Annotated[str | None, typer.Option(help='Backbone name, if the file does not state it.')] = None,
    out: Annotated[Path, typer.Option(help='Folder of the reports.')] = Path('runs/probe'),
    cache: Annotated[Path, typer.Option(help='Folder of cached features.')] = Path('runs/features'),
    name: Annotated[str, typer.Option(help='Name of the backbone in reports.')] = '',
    image_size: Annotated[int | None, typer.Option(help='Image side, pixels; from the model.')] = None,
    turns: Annotated[
        int, typer.Option(help='Orientations of a tile that features are averaged over: 1, 4 or 8.')
    ] = 1,
    budgets: Annotated[str, typer.Option(help='Label budgets: all, shares, numbers per class.')] = 'all',
    seeds: Annotated[int, typer.Option(help='Label draws of every budget but all.')] = 5,
    methods: Annotated[str, typer.Option(help='Of linear, logistic, knn.')] = 'linear,logistic,knn',
    epochs: Annotated[int, typer.Option(help='Epochs of the linear sweep.')] = 10,
    iterations: Annotated[int, typer.Option(help='Steps per epoch of the linear sweep.')] = 1500,
    few_iterations: Annotated[int, typer.Option(help='The same with few labels.')] = 150,
    neighbours: Annotated[int, typer.Option(help='k of k-NN.')] = 5,
    val_split: Annotated[float, typer.Option(help='Share of training held out, without val/.')] = 0.1,
    batch_size: Annotated[int, typer.Option(help='Images per forward pass.')] = 128,
    workers: Annotated[int, typer.Option(help='Processes that read images.')] = 0,
    device: Annotated[str, typer.Option(help='cpu, cuda or auto.')] = 'auto',
    statistics: Annotated[str, typer.Option(help='Normalize by those of the model or the data.')] = '',
    dry_run: Annotated[bool, typer.Option('--dry-run', help='Say how much there is to do.')] = False,
) -> None:
    """Measure frozen features: linear sweep, logistic regression, k-NN, with few and all labels.

    Features are extracted once and cached. Example:
    explora-geo probe tests/data/eurosat_rgb --weights ViTTiny8_Weights.TINY_IMAGENET_MAE --budgets 5,all
    """
    from rich.console import Console
    from rich.table import Table

    from explora_geo.checkpoints import open_backbone
    from explora_geo.commands.data import image_side, open_data
    from explora_geo.commands.device import pick_device
    from explora_geo.evaluation.budgets import Budget
    from explora_geo.evaluation.protocol import ProbeProtocol, run_probes
    from explora_geo.evaluation.report import write_reports
    from explora_geo.evaluation.sweep import SweepConfig
    from explora_geo.models.turns import check_turns

    if not 0 < val_split < 1:
        raise ValueError(f'val_split must be between 0 and 1, as probes are chosen on it, got {val_split}')
    check_turns(turns)
    drawn = tuple(Budget.parse(b) for b in budgets.split(','))
    largest = image_side(data)
    vit, backbone = open_backbone(weights, adapter, model, largest, img_size=image_size)
    vit.to(pick_device(device))
    blocks = tuple(dict.fromkeys((1, min(4, vit.depth))))
    protocol = ProbeProtocol(
        budgets=drawn,
        seeds=seeds,
        methods=tuple(m.strip() for m in methods.split(',')),
        sweep=SweepConfig(blocks=blocks, epochs=epochs, iterations=iterations),
        few_iterations=few_iterations,
        neighbours=neighbours,
    )
    tokenizer = vit.patch_embed
    side = tokenizer.grid_size[0] * tokenizer.patch_size
    datamodule = open_data(
        data, side, tokenizer.bands, val_split=0.0 if (data / 'val').is_dir() else val_split
    )
    console = Console()
    if side > largest:
        console.print(
            f'images of {largest} px are enlarged to {side} px: --image-size sets it', soft_wrap=True
        )
    if dry_run:
        console.print(_plan(datamodule, protocol), markup=False, highlight=False, soft_wrap=True)
        return
    with console.status('') as status:
        tables = extract_parts(
            vit,
            datamodule,
            cache,
            status.update,
            statistics or None,  # type: ignore[arg-type]
            turns=turns,
            batch_size=batch_size,
            num_workers=workers,
        )
        outcome = run_probes(
            tables['train'],
            tables['val'],
            tables['test'],
            protocol,
            tuple(getattr(datamodule.train_dataset, 'classes', ())),
            status.update,
        )
    about = {
        'name': name or (f'{backbone} + {adapter.name}' if adapter else f'{backbone} {weights}'),
        'dataset': data.stem,
        'backbone': backbone,
        'weights': weights,
        'adapter': str(adapter) if adapter else None,
        'bands': list(tokenizer.bands),
        'image_size': side,
        'feature_dim': vit.embed_dim,
        'turns': turns,
        'images': {part: len(table.label) for part, table in tables.items()},
        'skipped': [text for table in tables.values() for text in table.skipped],
    }
    files = write_reports(out, outcome, protocol, about)
    table = Table('labels', 'method', 'test accuracy, %', '95 % interval', 'chosen', title=str(about['name']))
    for score in outcome.scores:
        low, high = score.interval
        interval = f'{100 * low:.1f} to {100 * high:.1f}'
        chosen = max(set(score.settings), key=score.settings.count)
        table.add_row(str(score.labels), score.method, f'{100 * score.mean:.1f}', interval, chosen)
    console.print(table)
    console.print('\n'.join(str(f) for f in files), markup=False, highlight=False, soft_wrap=True)


def _plan(datamodule: Any, protocol: Any) -> str:
    for stage in ('fit', 'test'):
        datamodule.setup(stage)
    found = {part: getattr(datamodule, f'{part}_dataset', None) for part in ('train', 'val', 'test')}
    images = ', '.join(f'{part} {len(data):,}' for part, data in found.items() if data is not None)
    fits = sum(1 if str(b) == 'all' else protocol.seeds for b in protocol.budgets)
    return (
        f'images: {images}; each passes the backbone once, then {", ".join(protocol.methods)} for '
        f'{fits} draws of labels; nothing was written'
    )


def extract_parts(
    vit: Any,
    datamodule: Any,
    cache: Path | None,
    progress: Any,
    statistics: Literal['model', 'data'] | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """Cached features of the training, validation and test part of a data module.

    Without a validation part a tenth of the training images is held out, evenly spaced within each class.

    Args:
        vit: Backbone.
        datamodule: Data module of ours or of TorchGeo.
        cache: Folder of the cache.
        progress: Told what is done next.
        statistics: Whose mean and standard deviation normalize; see `match_data`.
        **kwargs: Further arguments of `cached_features`.

    Returns:
        Feature tables of `train`, `val` and `test`.

    Raises:
        ValueError: If there is no test part, or the data do not fit the backbone.
    """
    from explora_geo.evaluation.cache import cached_features
    from explora_geo.trainers.match import match_data

    for stage in ('fit', 'test'):
        datamodule.setup(stage)
    match_data(datamodule, vit, statistics)
    tables = {}
    for part in ('train', 'val', 'test'):
        dataset = getattr(datamodule, f'{part}_dataset', None)
        if dataset is None and part != 'val':
            raise ValueError(
                f'the data module has no {part} images: a probe trains on one part and tests on another'
            )
        if dataset is None:
            continue

        def report(done: int, total: int, part: str = part) -> None:
            progress(f'features of {part} images: {done:,} of {total:,}')

        report(0, len(dataset))
        collate = getattr(datamodule, 'collate_fn', None)
        options = {**kwargs, **({'collate': collate} if collate else {})}
        tables[part] = cached_features(
            cache, vit, dataset, transform=datamodule.aug, progress=report, **options
        )
    if 'val' not in tables:
        tables['train'], tables['val'] = hold_out(tables['train'])
    return tables


def hold_out(table: Any) -> tuple[Any, Any]:
    """Features without, and of, a tenth of each class, evenly spaced; at least one image."""
    import torch

    held = torch.zeros(len(table.label), dtype=torch.bool)
    for c in table.label.unique():
        members = (table.label == c).nonzero().flatten()
        held[members[5::10] if len(members) > 5 else members[-1:]] = True
    kept, chosen = (~held).nonzero().flatten(), held.nonzero().flatten()
    return table.take(kept), table.take(chosen)
