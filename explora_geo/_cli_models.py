"""Commands that evaluate, map, export, inspect and share models."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from explora_geo._cli_console import bars, console, names, say, show

# Options shared by several commands
# Where weights may come from
_ANY = 'a file, a known name, timm/<name>, hf:<owner>/<name>'
_Adapter = Annotated[Path | None, Option(help='Adapter file made from these weights.')]
_Name = Annotated[str | None, Option(help='Name of the backbone, if the file does not state it.')]
_Device = Annotated[str, Option(help='cpu, cuda or auto.')]

adapter_app = typer.Typer(help='Look into adapter files and merge them.', no_args_is_help=True)
weights_app = typer.Typer(help='Look into weights of any known layout.', no_args_is_help=True)


def probe(
    data: Annotated[
        Path, Argument(help='Folder with class folders in train/ and test/, or YAML of a data module.')
    ],
    weights: Annotated[str, Option(help=f'Backbone: {_ANY}.')],
    adapter: _Adapter = None,
    model: _Name = None,
    out: Annotated[Path, Option(help='Output folder of the reports.')] = Path('runs/probe'),
    cache: Annotated[Path, Option(help='Folder of cached features.')] = Path('runs/features'),
    name: Annotated[str, Option(help='Name of the backbone in reports.')] = '',
    image_size: Annotated[
        int | None, Option(help='Image side, pixels; that of the model by default.')
    ] = None,
    turns: Annotated[int, Option(help='Average features over 1, 4 or 8 orientations of a tile.')] = 1,
    budgets: Annotated[str, Option(help='Label budgets: all, percentages, or numbers per class.')] = 'all',
    seeds: Annotated[int, Option(help='Random draws of each budget except all.')] = 5,
    methods: Annotated[str, Option(help='Any of linear, logistic, knn.')] = 'linear,logistic,knn',
    epochs: Annotated[int, Option(help='Epochs of the linear sweep.')] = 10,
    iterations: Annotated[int, Option(help='Steps per epoch of the linear sweep.')] = 1500,
    few_iterations: Annotated[int, Option(help='Steps per epoch with few labels.')] = 150,
    neighbors: Annotated[int, Option(help='k of k-NN.')] = 5,
    val_split: Annotated[float, Option(help='Share of training images held out if there is no val/.')] = 0.1,
    batch_size: Annotated[int, Option(help='Images per forward pass.')] = 128,
    workers: Annotated[int, Option(help='Processes that read images.')] = 0,
    device: _Device = 'auto',
    statistics: Annotated[str, Option(help='Statistics to normalize with: model or data.')] = '',
    dry_run: Annotated[bool, Option('--dry-run', help='Print the amount of work and stop.')] = False,
) -> None:
    """Evaluate frozen features with few and all labels: linear sweep, logistic regression, k-NN.

    Features are extracted once and cached. Example:
    explora-geo probe tests/data/eurosat_rgb --weights ViTTiny8_Weights.TINY_IMAGENET_MAE --budgets 5,all
    """
    from explora_geo.checkpoints import load_backbone
    from explora_geo.configured import open_data
    from explora_geo.devices import pick_device
    from explora_geo.evaluation import Budget, ProbeProtocol, SweepConfig
    from explora_geo.evaluation import probe as measure
    from explora_geo.evaluation.protocol import describe_plan, describe_source, write_reports
    from explora_geo.models.readout import check_turns

    check_turns(turns)
    drawn = tuple(Budget.parse(b) for b in budgets.split(','))
    largest, make = open_data(data, val_split)
    vit = load_backbone(model, weights, adapter, largest=largest, img_size=image_size)
    vit.to(pick_device(device))
    protocol = ProbeProtocol(
        budgets=drawn,
        seeds=seeds,
        methods=tuple(m.strip() for m in methods.split(',')),
        sweep=SweepConfig(blocks=tuple(sorted({1, min(4, vit.depth)})), epochs=epochs, iterations=iterations),
        few_iterations=few_iterations,
        neighbors=neighbors,
    )
    side = vit.patch_embed.img_size
    datamodule = make(image_size=side, bands=vit.patch_embed.bands)
    if side > largest:
        say(f'enlarging images from {largest} px to {side} px: use --image-size to change this')
    if dry_run:
        return say(describe_plan(datamodule, protocol))
    used: Any = statistics or None
    options = {'turns': turns, 'batch_size': batch_size, 'num_workers': workers}
    with console.status('') as status:
        outcome = measure(
            vit, datamodule, protocol, cache, statistics=used, progress=status.update, **options
        )
    files = write_reports(out, outcome, describe_source(vit, data.stem, weights, adapter, turns, name))
    return say('\n'.join([files[-1].read_text(encoding='utf-8'), *map(str, files)]))


def map_scene(
    scene: Annotated[str, Argument(help='Georeferenced raster: a file, a URL, or a /vsi... name.')],
    model: Annotated[
        Path | None, Option(help='Tuned model: model.safetensors or a checkpoint of a run.')
    ] = None,
    out: Annotated[Path | None, Option(help='Map to write (.tif).')] = None,
    weights: Annotated[str | None, Option(help='Backbone instead of a model, for embeddings.')] = None,
    adapter: _Adapter = None,
    probabilities: Annotated[Path | None, Option(help='Probability of each class (.tif).')] = None,
    vectors: Annotated[Path | None, Option(help='Polygons (.gpkg, .parquet, .geojson).')] = None,
    classes: Annotated[str, Option(help='Classes to polygonize, comma-separated; all by default.')] = '',
    min_area: Annotated[float, Option(help='Smallest polygon, square meters.')] = 0.0,
    embeddings: Annotated[Path | None, Option(help='Features per patch (.tif, .parquet).')] = None,
    quicklook: Annotated[Path | None, Option(help='Picture of scene and map (.png).')] = None,
    file_bands: Annotated[str, Option(help='Names of all bands in file order.')] = '',
    statistics: Annotated[str, Option(help='Statistics to normalize with: model or scene.')] = '',
    overlap: Annotated[float, Option(help='Overlap of neighboring tiles, as a share of a tile.')] = 0.25,
    block: Annotated[int, Option(help='Side of the blocks written one by one, pixels.')] = 2048,
    turns: Annotated[int, Option(help='Average the map over 1, 4 or 8 orientations of a tile.')] = 1,
    batch_size: Annotated[int, Option(help='Tiles per forward pass.')] = 16,
    workers: Annotated[int, Option(help='Processes that read tiles.')] = 0,
    device: _Device = 'auto',
    dry_run: Annotated[bool, Option('--dry-run', help='Print the amount of work and stop.')] = False,
) -> None:
    """Map a scene of any size: classes or numbers per pixel, polygons, embeddings.

    Repeat the command to resume an interrupted map. A scene is any raster GDAL opens: https://..., s3://...,
    /vsicurl/..., /vsizip/... Example:
    explora-geo map scene.tif --model runs/segmentation/model.safetensors --out map.tif --quicklook map.png
    """
    from explora_geo.checkpoints import load_backbone
    from explora_geo.devices import pick_device
    from explora_geo.maps import MapOptions, Outputs, describe_plan, make_map
    from explora_geo.maps.model import open_features, open_model
    from explora_geo.maps.scene import Scene
    from explora_geo.models.builders import DINOV2_SIZE

    if (model is None) == (weights is None):
        raise ValueError('pass either --model (a tuned model) or --weights (a backbone for embeddings)')
    if adapter is not None and weights is None:
        raise ValueError('--adapter requires --weights: a tuned model already contains all of its weights')
    where = pick_device(device)
    if model is not None:
        found = open_model(model, where)
    else:
        found = open_features(load_backbone(None, weights, adapter, largest=DINOV2_SIZE), where, weights)
    used: Any = statistics or ('model' if 'mean' in found.data else 'scene')
    options = MapOptions(overlap, block, batch_size, workers, where, used, turns)
    opened = Scene(scene, found.bands, names(file_bands))
    chosen = tuple(names(classes) or ())
    outputs = Outputs(out, probabilities, vectors, chosen, min_area, embeddings, quicklook)
    outputs.check(opened, found)
    if dry_run:
        return say(describe_plan(opened, found, options))
    with bars() as progress:
        files = make_map(opened, found, outputs, options, progress)
    return say('\n'.join(f'{kind}: {file}' for kind, file in files.items()))


def export(
    out: Annotated[
        Path, Argument(help='File: .safetensors (timm), .ckpt (TorchGeo), .pt2, .onnx; or a folder.')
    ],
    weights: Annotated[str | None, Option(help=f'Backbone: {_ANY}.')] = None,
    adapter: _Adapter = None,
    model: _Name = None,
    tuned: Annotated[Path | None, Option(help='Tuned model instead of weights, for .pt2 and .onnx.')] = None,
    layout: Annotated[
        str, Option('--format', help='peft (the adapter) or transformers, into a folder; else by the ending.')
    ] = '',
) -> None:
    """Export a backbone with its adapter merged, a tuned model, or an adapter for PEFT.

    Example: explora-geo export model.safetensors --weights base.safetensors --adapter adapter.safetensors
    """
    from explora_geo.checkpoints import load_backbone
    from explora_geo.checkpoints.export import check_request, export_peft, export_transformers
    from explora_geo.checkpoints.export import export as write
    from explora_geo.trainers import load_task

    check_request(out, layout, weights, adapter, model, tuned)
    if layout == 'peft':
        bare = export_peft(adapter, out)  # type: ignore[arg-type]
        rest = f'; {", ".join(bare)} saved in parameters.safetensors' if bare else ''
        return say(f'{out}: load it with PeftModel.from_pretrained{rest}')
    module: Any = load_task(tuned).model if tuned else load_backbone(model, weights, adapter)
    if layout == 'transformers':
        return say(f'{out}: load it with transformers.{export_transformers(module, out)}.from_pretrained')
    vit = module if tuned is None else module.backbone
    difference = write(module, vit.name, out)
    if out.suffix in ('.safetensors', '.ckpt'):
        return say(f'{out}: {vit.name} with timm keys')
    checked = '' if difference is None else f', onnxruntime within {difference:.1e} of torch'
    return say(f'{out}: {vit.patch_embed.img_size} px images, any batch size{checked}')


@adapter_app.command('info')
def adapter_info(file: Annotated[Path, Argument(help='Adapter file.')]) -> None:
    """Show the content of an adapter file and the base it belongs to.

    Example: explora-geo adapter info runs/demo/adapter.safetensors
    """
    from explora_geo.checkpoints import read_adapter
    from explora_geo.models.normalization import describe

    header, state = read_adapter(file)
    rows = {
        'backbone': f'{header.backbone}, {header.img_size} px, patch {header.patch_size}',
        'adaptation': header.explora_config.notation(),
        'configuration': ', '.join(f'{k}={v}' for k, v in header.config.items()),
        'bands': ', '.join(header.bands),
        'normalization': header.normalization and describe(header.normalization, header.bands),
        'base': ', '.join(filter(None, [header.base, header.license])),
        'base SHA-256': header.base_sha256,
        'written by': f'explora_geo {header.version}',
        'tensors': f'{len(state)}, {sum(t.numel() for t in state.values()):,} values',
        'size': f'{file.stat().st_size / 1e6:.2f} MB',
    }
    show(str(file), rows)


@adapter_app.command('merge')
def adapter_merge(
    file: Annotated[Path, Argument(help='Adapter file.')],
    base: Annotated[str, Option(help=f'Base weights: {_ANY}.')],
    out: Annotated[Path, Option(help='Model file to write (.safetensors).')],
    strength: Annotated[float, Option(help='Share of the adapter to apply, from 0 to 1.')] = 1.0,
) -> None:
    """Merge an adapter into its base, and write a plain model with timm's keys.

    Example: explora-geo adapter merge adapter.safetensors --base base.safetensors --out model.safetensors
    """
    from explora_geo.checkpoints import merge_adapter

    vit = merge_adapter(file, base, out, strength)
    say(f'{out}: {vit.name} with {vit.adaptation} merged')


@weights_app.command('inspect')
def weights_inspect(weights: Annotated[str, Argument(help=f'Weights: {_ANY}.')]) -> None:
    """Describe weights: layout, backbone, bands, patch, size, and content beyond the backbone.

    Example: explora-geo weights inspect ViTTiny8_Weights.TINY_IMAGENET_MAE
    """
    from explora_geo.checkpoints.backbone import describe_weights

    show(weights, describe_weights(weights))


@weights_app.command('list')
def weights_list(
    search: Annotated[str, Option(help='Words that the name or description must contain.')] = '',
) -> None:
    """List our and TorchGeo's named weights with their backbone, tokenizer and license.

    Example: explora-geo weights list --search "sentinel2 dino"
    """
    from explora_geo.models.weights import search_weights

    found = search_weights(search)
    if not found:
        raise ValueError(
            f'no weights match {search!r}: search for one word, such as sentinel2, landsat or mae'
        )
    for name, meta in found.items():  # one unwrapped line each, so that names can be copied
        parts = [meta['model'], meta.get('tokenizer', 'patch'), 'with decoder' if meta['decoder'] else '']
        say(f'{name}: {", ".join(filter(None, parts))}; {meta["license"]}')


def push(
    file: Annotated[Path, Argument(help='Adapter, merged model, or a folder from export --format peft.')],
    repo: Annotated[str, Argument(help='Repository on the hub, OWNER/NAME.')],
    report: Annotated[
        Path | None, Option(help='report.json of the run; by default the one next to the file.')
    ] = None,
    license: Annotated[str | None, Option(help='License of the base, if the file states none.')] = None,
    private: Annotated[bool, Option('--private', help='Make a private repository.')] = False,
) -> None:
    """Upload an adapter or a model with a card to the Hugging Face hub, authenticated by HF_TOKEN.

    Example: explora-geo push runs/mine/adapter.safetensors OWNER/NAME
    """
    from explora_geo.checkpoints.sharing import push as upload

    say(f'{upload(file, repo, report, license, private)}: pass this name to load_backbone or --weights')


def pull(
    repo: Annotated[str, Argument(help='OWNER/NAME, OWNER/NAME@REVISION or OWNER/NAME/FILE.')],
    out: Annotated[Path, Argument(help='Output folder.')],
) -> None:
    """Download an adapter or a model and its card from the Hugging Face hub.

    Example: explora-geo pull OWNER/NAME runs/theirs
    """
    from explora_geo.checkpoints.sharing import pull as copy

    say(f'{copy(repo, out)}')
