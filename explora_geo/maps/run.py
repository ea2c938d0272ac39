"""Mapping of a scene: block by block, resumable, with all output files."""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import rasterio
import torch

from explora_geo.maps.grid import TileGrid
from explora_geo.maps.model import Blend, Function, MapModel, patch_features
from explora_geo.maps.outputs import NODATA, Layer, Parts, draw, embedding_points, parts_folder, polygonize
from explora_geo.maps.scene import Scene, UnreadableError
from explora_geo.models.normalization import Normalization
from explora_geo.models.readout import average_maps, check_turns

#: GDAL's cache of the scene, bytes: rasterio passes the number on unchanged.
CACHE = 256 << 20
Progress = Callable[[str, int, int], None]

_RASTERS = '.tif', '.tiff'
# File extensions allowed in `Outputs`
_ENDINGS = {
    'out': _RASTERS,
    'probabilities': _RASTERS,
    'vectors': ('.gpkg', '.parquet', '.geojson'),
    'embeddings': (*_RASTERS, '.parquet'),
    'quicklook': ('.png',),
}


@dataclass(frozen=True)
class MapOptions:
    """Options for making a map."""

    overlap: float = 0.25  # share of a tile that the next one overlaps
    block: int = 2048  # side of the blocks that are finished and saved one by one, pixels
    batch_size: int = 16  # tiles per forward pass
    workers: int = 0  # data-loading processes; for a scene at a URL each fetches its own bytes
    device: torch.device | str = 'cpu'  # device of the model
    statistics: Literal['model', 'scene'] = 'model'  # normalize by the training images' or the scene's
    turns: int = 1  # orientations of a tile that values are averaged over: 1, 4 or 8

    def __post_init__(self) -> None:
        """Check the values."""
        check_turns(self.turns)
        for name, least in (('block', 1), ('batch_size', 1), ('workers', 0)):
            if getattr(self, name) < least:
                raise ValueError(f'{name} must be at least {least}, got {getattr(self, name)}')
        if self.statistics not in ('model', 'scene'):
            raise ValueError(f'statistics must be model or scene, got {self.statistics!r}')

    def grid(self, scene: Scene, model: MapModel, cell: int = 1) -> TileGrid:
        """Return the tile grid of a scene."""
        return TileGrid(scene.height, scene.width, model.tile, self.overlap, self.block, cell)


@dataclass(frozen=True)
class Outputs:
    """Files to make from a scene."""

    # Cloud-Optimized GeoTIFF of classes (uint8, 255 is nodata) or numbers (float32)
    out: Path | None = None
    probabilities: Path | None = None  # GeoTIFF with one band per class probability
    vectors: Path | None = None  # polygons of the classes
    vector_classes: tuple[str, ...] = ()  # classes to polygonize; all if empty
    min_area: float = 0.0  # smallest area of a polygon, square meters
    embeddings: Path | None = None  # GeoTIFF or `.parquet` of patch features
    quicklook: Path | None = None  # PNG of scene and map

    def check(self, scene: Scene, model: MapModel) -> None:
        """Reject outputs that would fail after hours of computing, or overwrite the scene; see `make_map`.

        Raises:
            ValueError: If outputs do not fit the model, the scene or one another.
            ImportError: If a package needed to write them is missing.
        """
        source, unknown = model.source, [n for n in self.vector_classes if n not in model.classes]
        for wrong, sentence in (
            (not (self.out or self.embeddings), 'pass out for a map, or embeddings for patch features'),
            (self.vector_classes and not self.vectors, 'classes applies only to polygons: pass vectors, too'),
            (self.min_area and not self.vectors, 'min_area applies only to polygons: pass vectors, too'),
            (
                not self.out and (self.probabilities or self.vectors or self.quicklook),
                'probabilities, vectors and quicklook are made from a map: pass out, too',
            ),
            (
                self.out and model.function is None,
                f'{source} is a backbone without a head: it can make embeddings, but no map',
            ),
            (
                (self.probabilities or self.vectors) and not model.classes,
                f'{source} predicts numbers, but probabilities and polygons need classes',
            ),
            (
                len(model.classes) > NODATA,
                f'a map can have at most {NODATA} classes, {source} has {len(model.classes)}',
            ),
            (
                model.backbone.patch_embed.kind == 'temporal',
                f'{source} reads series of images, but a map is made from one scene',
            ),
            (unknown, f'unknown class {"".join(unknown[:1])!r}, expected one of {", ".join(model.classes)}'),
        ):
            if wrong:
                raise ValueError(sentence)
        taken = {scene.path.resolve(): 'the scene itself'} if isinstance(scene.path, Path) else {}
        for name, endings in _ENDINGS.items():
            if (path := getattr(self, name)) is not None:
                if path.resolve() in taken:
                    raise ValueError(
                        f'{path} is {taken[path.resolve()]}: use a separate file for each output'
                    )
                taken[path.resolve()] = 'another output'
                _check_file(path, endings, scene)
        if self.vectors is not None:
            scene.check_areas()


def _check_file(path: Path, endings: tuple[str, ...], scene: Scene) -> None:
    """Reject wrong extensions, missing packages, and finished blocks of a scene that cannot be identified."""
    if path.suffix.lower() not in endings:
        raise ValueError(f'cannot write {path.name}: use the extension {" or ".join(endings)}')
    if path.suffix == '.parquet' and importlib.util.find_spec('pyarrow') is None:
        raise ImportError(
            f'{path.name} needs pyarrow: pip install "explora_geo[parquet]", or choose another format'
        )
    folder = parts_folder(path)
    if scene.identity['changed'] is None and any(folder.glob('*.npz')):
        raise ValueError(
            f'{folder} contains finished blocks, but no ETag or Last-Modified tells whether {scene.path} has '
            'changed since: remove that folder to start over, or map a copy on disk'
        )


def describe_plan(scene: Scene, model: MapModel, options: MapOptions) -> str:
    """Describe the work of mapping a scene in one sentence."""
    grid = options.grid(scene, model)
    tiles = [len(grid.tiles(block)) for block in grid.blocks()]
    return (
        f'{scene.path}: {scene.width:,} x {scene.height:,} pixels, bands {", ".join(scene.bands)}; '
        f'{len(tiles):,} blocks, {sum(tiles):,} tiles of {model.tile} px, '
        f'at least {-(-sum(tiles) // options.batch_size):,} forward passes on {options.device}; normalized '
        f'with the statistics of the {options.statistics}; nothing was written'
    )


def make_map(
    scene: Scene,
    model: MapModel,
    outputs: Outputs,
    options: MapOptions = MapOptions(),
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Path]:
    """Map a scene.

    Finished blocks are kept beside the output until it is written: after an interruption, a full disk or a
    server failure, repeat the call to resume from them. A scene at a URL is identified by URL, size and
    `ETag` (or `Last-Modified`).

    Args:
        scene: Scene to map.
        model: Model to map with.
        outputs: Files to make.
        options: Options for making them.
        progress: Called with the layer's name, the number of finished blocks, and the total.

    Returns:
        Files by kind.

    Raises:
        ValueError: If the scene is smaller than a tile, or outputs or options do not fit the model.
        OSError: If a file cannot be written.
    """
    outputs.check(scene, model)
    normalization = _normalization(scene, model, options)
    tags = {'MODEL': Path(model.source).name, 'MODEL_SHA256': model.sha256, 'SCENE': scene.name}
    setting = {
        'scene': scene.identity,
        'bands': scene.bands,
        'model': model.sha256,
        'normalization': asdict(normalization),
        **{name: getattr(options, name) for name in ('overlap', 'block', 'turns')},
    }
    made: dict[str, Path] = {}
    kept: list[Parts] = []  # kept until all files are written, to resume from

    def rasters(out: Path, function: Function, layers: Mapping[str, Layer], cell: int = 1) -> None:
        grid = options.grid(scene, model, cell)
        kept.append(Parts(out, {**setting, 'layers': list(layers), 'cell': cell}))
        turned = partial(average_maps, function, turns=options.turns)
        blend = Blend(scene, grid, turned, normalization, options.batch_size, options.workers, options.device)
        _fill(blend, kept[-1], layers, progress)
        for key, layer in layers.items():
            layer.write(scene, grid, kept[-1], key)
            made[key] = layer.path

    with rasterio.Env(GDAL_CACHEMAX=CACHE):
        if outputs.out is not None and model.function is not None:
            named = {f'CLASS_{i}': name for i, name in enumerate(model.classes)}
            count, names = (1, ['class']) if model.classes else (model.outputs, [])
            layers = {'map': Layer(outputs.out, count, names, tags | named, model.colors)}
            if (path := outputs.probabilities) is not None:
                layers['probabilities'] = Layer(path, len(model.classes), model.classes, tags)
            rasters(outputs.out, model.function, layers)
        if (path := outputs.embeddings) is not None:
            vit, points = model.backbone, path.suffix == '.parquet'
            # Not beside the points, where the user may have a file of that name.
            raster = parts_folder(path) / 'embeddings.tif' if points else path
            layers = {'embeddings': Layer(raster, vit.embed_dim, [], tags)}
            rasters(path, patch_features(vit), layers, vit.patch_embed.patch_size)
            if points:
                embedding_points(raster, path)
            made['embeddings'] = path
        if outputs.vectors is not None:
            polygonize(made['map'], outputs.vectors, model.classes, outputs.vector_classes, outputs.min_area)
            made['vectors'] = outputs.vectors
        if outputs.quicklook is not None:
            title = f'{scene.name}: {Path(model.source).name}'
            draw(outputs.quicklook, scene, made['map'], model.classes, model.colors, title)
            made['quicklook'] = outputs.quicklook
    for parts in kept:
        parts.remove()
    return made


def _normalization(scene: Scene, model: MapModel, options: MapOptions) -> Normalization:
    """Return the normalization of the model's training images, or of the scene."""
    data, clip = model.data, bool(model.data.get('clip'))
    if options.statistics == 'scene':
        return scene.statistics(clip)
    if 'mean' not in data or 'std' not in data:
        raise ValueError(
            f'{model.source} does not contain the mean and standard deviation of its training images: pass '
            '--statistics scene to use those of the scene'
        )
    return Normalization(tuple(data['mean']), tuple(data['std']), clip)


def _fill(blend: Blend, parts: Parts, layers: Mapping[str, Layer], progress: Progress) -> None:
    """Compute and save the missing blocks."""
    blocks, what = blend.grid.blocks(), next(iter(layers))
    with blend.scene.open() as source:
        for number, block in enumerate(blocks):
            progress(what, number, len(blocks))
            if parts.file(number).is_file():
                continue
            kept = f'Failed at block {number + 1} of {len(blocks)}'
            if blend.scene.identity['changed'] is not None:
                kept += f'; finished blocks are kept in {parts.folder}, repeat the command to resume'
            try:
                values, valid = blend.predict(source, block)
                parts.write(number, {k: layer.finish(values, valid) for k, layer in layers.items()})
            except UnreadableError as error:
                raise UnreadableError(f'{str(error).rstrip()}. {kept}') from error  # a worker's ends in \n
            except OSError as error:
                raise OSError(f'{error.strerror or error}. {kept}') from error
    progress(what, len(blocks), len(blocks))
