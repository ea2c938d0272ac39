"""`explora-geo map`: a georeferenced map of a scene."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.progress import TaskID

    from explora_geo.maps import MapOptions
    from explora_geo.maps.model import MapModel
    from explora_geo.maps.scene import Scene


def make(
    scene: Annotated[str, typer.Argument(help='Georeferenced raster: a file, a URL, or a /vsi... name.')],
    model: Annotated[
        Path | None, typer.Option(help='Tuned model: model.safetensors or a checkpoint of a run.')
    ] = None,
    out: Annotated[Path | None, typer.Option(help='Map to write (.tif).')] = None,
    weights: Annotated[str | None, typer.Option(help='Backbone instead of a model, for embeddings.')] = None,
    adapter: Annotated[Path | None, typer.Option(help='Adapter file made on these weights.')] = None,
    probabilities: Annotated[Path | None, typer.Option(help='Probability of each class (.tif).')] = None,
    vectors: Annotated[Path | None, typer.Option(help='Polygons (.gpkg, .parquet, .geojson).')] = None,
    classes: Annotated[str, typer.Option(help='Classes to polygonise, comma-separated; all.')] = '',
    min_area: Annotated[float, typer.Option(help='Smallest polygon, square metres.')] = 0.0,
    embeddings: Annotated[Path | None, typer.Option(help='Features per patch (.tif, .parquet).')] = None,
    quicklook: Annotated[Path | None, typer.Option(help='Picture of scene and map (.png).')] = None,
    file_bands: Annotated[str, typer.Option(help='Names of all bands in file order.')] = '',
    statistics: Annotated[str, typer.Option(help='Normalise by those of the model or the scene.')] = '',
    overlap: Annotated[float, typer.Option(help='Share of a tile that the next covers again.')] = 0.25,
    block: Annotated[int, typer.Option(help='Side of blocks finished one by one, pixels.')] = 2048,
    turns: Annotated[
        int, typer.Option(help='Orientations of a tile that the map is averaged over: 1, 4 or 8.')
    ] = 1,
    batch_size: Annotated[int, typer.Option(help='Tiles per forward pass.')] = 16,
    workers: Annotated[int, typer.Option(help='Processes that read tiles.')] = 0,
    device: Annotated[str, typer.Option(help='cpu, cuda or auto.')] = 'auto',
    dry_run: Annotated[bool, typer.Option('--dry-run', help='Say how much there is to do.')] = False,
) -> None:
    """Map a scene of any size: classes or numbers per pixel, polygons, embeddings.

    An interrupted map goes on with the same command. What GDAL opens is a scene: https://..., s3://...,
    /vsicurl/..., /vsizip/... Example:
    explora-geo map scene.tif --model runs/segmentation/model.safetensors --out map.tif --quicklook map.png
    """
    from rich.console import Console
    from rich.progress import Progress

    from explora_geo.checkpoints import open_backbone
    from explora_geo.commands.device import pick_device
    from explora_geo.maps import MapOptions, check_outputs, make_map
    from explora_geo.maps.model import open_features, open_model
    from explora_geo.maps.scene import Scene
    from explora_geo.models.builders import DINOV2_SIZE

    if (model is None) == (weights is None):
        raise ValueError('give either model, a tuned model, or weights, a backbone for embeddings')
    if adapter is not None and weights is None:
        raise ValueError('an adapter belongs to weights: a tuned model holds all of its own')
    if min_area and vectors is None:
        raise ValueError('min_area is of polygons: give vectors, too')
    where = pick_device(device)
    if model is not None:
        found, source = open_model(model, where), str(model)
    else:
        found, source = (
            open_features(open_backbone(str(weights), adapter, largest=DINOV2_SIZE)[0], where),
            str(weights),
        )
    kind: Literal['model', 'scene'] = statistics or ('model' if 'mean' in found.data else 'scene')  # type: ignore[assignment]
    options = MapOptions(
        overlap=overlap,
        block=block,
        turns=turns,
        batch_size=batch_size,
        workers=workers,
        device=where,
        statistics=kind,
    )
    opened = Scene(scene, found.bands, file_bands.split(',') if file_bands else None)
    wanted: dict[str, Any] = {
        'probabilities': probabilities,
        'vectors': vectors,
        'vector_classes': tuple(c.strip() for c in classes.split(',') if c.strip()),
        'embeddings': embeddings,
        'quicklook': quicklook,
    }
    check_outputs(opened, found, source, out, **wanted)
    console = Console()
    if dry_run:
        console.print(_plan(opened, found, options), markup=False, highlight=False, soft_wrap=True)
        return
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bars: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=total)
            progress.update(bars[what], completed=done)

        files = make_map(opened, found, source, out, options, **wanted, min_area=min_area, progress=report)
    console.print(
        '\n'.join(f'{k}: {v}' for k, v in files.items()), markup=False, highlight=False, soft_wrap=True
    )


def _plan(scene: 'Scene', model: 'MapModel', options: 'MapOptions') -> str:
    from explora_geo.maps.grid import TileGrid

    grid = TileGrid.create(scene.height, scene.width, model.tile, options.overlap, options.block)
    blocks = grid.blocks()
    tiles = sum(len(grid.tiles(block)) for block in blocks)
    return (
        f'{scene.path}: {scene.width:,} x {scene.height:,} pixels, bands {", ".join(scene.bands)}; '
        f'{len(blocks):,} blocks, {tiles:,} tiles of {model.tile} px, '
        f'{-(-tiles // options.batch_size):,} or more forward passes on {options.device}; normalised by the '
        f'statistics of the {options.statistics}; nothing was written'
    )
