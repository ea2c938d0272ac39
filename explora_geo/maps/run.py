"""From a scene to a map: block by block, resumable, and the files made of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
import torch

from explora_geo.maps.grid import TileGrid
from explora_geo.maps.model import MapModel, patch_features
from explora_geo.maps.parts import Parts, assemble, parts_folder
from explora_geo.maps.predict import Function, predict_block
from explora_geo.maps.quicklook import draw
from explora_geo.maps.scene import Scene, UnreadableError, statistics_of
from explora_geo.maps.vectors import check_vector_path, embedding_points, polygonise
from explora_geo.models.turns import average_maps, check_turns

#: Value of pixels without data in a map of classes.
NODATA = 255
#: Endings of GeoTIFF files.
_RASTERS = ('.tif', '.tiff')
#: What GDAL may keep of the scene in memory, bytes: rasterio hands the number on as it is.
CACHE = 256 << 20


@dataclass(frozen=True)
class MapOptions:
    """How a map is made.

    Attributes:
        overlap: Share of a tile that the next one covers again.
        block: Side of the blocks that are finished, and kept, one by one, pixels.
        batch_size: Tiles per forward pass.
        workers: Processes that read tiles; of a scene behind a URL each fetches its own bytes.
        device: Where the model runs.
        statistics: Normalise with the statistics of the model's training images, or of the scene.
        turns: Orientations of each tile that values are averaged over: 1, 4 or 8.
    """

    overlap: float = 0.25
    block: int = 2048
    batch_size: int = 16
    workers: int = 0
    device: torch.device | str = 'cpu'
    statistics: Literal['model', 'scene'] = 'model'
    turns: int = 1

    def __post_init__(self) -> None:
        """Check the values."""
        check_turns(self.turns)
        for name, least in (('block', 1), ('batch_size', 1), ('workers', 0)):
            if getattr(self, name) < least:
                raise ValueError(f'{name} must be at least {least}, got {getattr(self, name)}')
        if self.statistics not in ('model', 'scene'):
            raise ValueError(f'statistics must be model or scene, got {self.statistics!r}')


def describe_plan(scene: Scene, model: MapModel, options: MapOptions) -> str:
    """How much there is to do to map a scene, in one sentence."""
    grid = TileGrid.create(scene.height, scene.width, model.tile, options.overlap, options.block)
    blocks = grid.blocks()
    tiles = sum(len(grid.tiles(block)) for block in blocks)
    return (
        f'{scene.path}: {scene.width:,} x {scene.height:,} pixels, bands {", ".join(scene.bands)}; '
        f'{len(blocks):,} blocks, {tiles:,} tiles of {model.tile} px, '
        f'{-(-tiles // options.batch_size):,} or more forward passes on {options.device}; normalized by the '
        f'statistics of the {options.statistics}; nothing was written'
    )


def make_map(
    scene: Scene,
    model: MapModel,
    source: str | Path,
    out: Path | None = None,
    options: MapOptions = MapOptions(),
    *,
    probabilities: Path | None = None,
    vectors: Path | None = None,
    vector_classes: tuple[str, ...] = (),
    min_area: float = 0.0,
    embeddings: Path | None = None,
    quicklook: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Path]:
    """Map a scene.

    Finished blocks are kept beside the output until it is written: after an interruption, a full disk, or a
    server that fails, the same call goes on from there. A scene behind a URL is known by URL, size and `ETag`
    (or `Last-Modified`).

    Args:
        scene: The scene.
        model: The model.
        source: File of the model, for messages and tags.
        out: Cloud-Optimized GeoTIFF of classes (uint8, 255 without data) or numbers (float32).
        options: How.
        probabilities: GeoTIFF of a probability per class, as bands.
        vectors: File of polygons of the classes.
        vector_classes: Classes to polygonise; all if empty.
        min_area: Smallest area of a polygon, square metres.
        embeddings: GeoTIFF, or `.parquet`, of features per patch.
        quicklook: PNG of scene and map.
        progress: Told what is done, blocks finished and their number.

    Returns:
        The files by kind.

    Raises:
        ValueError: If the scene is smaller than a tile, or the options do not fit the model.
        OSError: If a file cannot be written.
    """
    check_outputs(
        scene,
        model,
        source,
        out,
        probabilities=probabilities,
        vectors=vectors,
        vector_classes=vector_classes,
        embeddings=embeddings,
        quicklook=quicklook,
    )
    clip = bool(model.data.get('clip'))
    if options.statistics == 'scene':
        statistics = scene.statistics()
        if clip:
            statistics = _clipped(statistics)
    else:
        statistics = statistics_of(model.data, source)
    setting = {
        'scene': scene.identity,
        'bands': scene.bands,
        'model': model.sha256,
        'statistics': statistics,
        'clip': clip,
        'overlap': options.overlap,
        'block': options.block,
        'turns': options.turns,
    }
    files: dict[str, Path] = {}
    finished: list[Parts] = []  # kept until all is written, so that the same command goes on from them
    with rasterio.Env(GDAL_CACHEMAX=CACHE):
        if out is not None and model.function is not None:
            grid = TileGrid.create(scene.height, scene.width, model.tile, options.overlap, options.block)
            keep = probabilities is not None
            parts = Parts(out, {**setting, 'probabilities': keep})
            _fill(
                scene,
                grid,
                parts,
                model.function,
                statistics,
                clip,
                options,
                1,
                _pixels(model, keep),
                progress,
            )
            files |= _write_maps(scene, model, grid, parts, out, probabilities, str(source))
            finished.append(parts)
        if embeddings is not None:
            step = model.backbone.patch_embed.patch_size
            grid = TileGrid.create(
                scene.height, scene.width, model.tile, options.overlap, options.block, step
            )
            parts = Parts(embeddings, {**setting, 'embeddings': step})
            function = patch_features(model.backbone.eval())
            _fill(scene, grid, parts, function, statistics, clip, options, step, _features(model), progress)
            files['embeddings'] = _write_embeddings(scene, model, grid, parts, embeddings, str(source))
            finished.append(parts)
        if out is not None and vectors is not None:
            polygonise(out, vectors, model.classes, vector_classes, min_area)
            files['vectors'] = vectors
        if out is not None and quicklook is not None:
            draw(quicklook, scene, out, model.classes, model.colours, f'{scene.name}: {Path(source).name}')
            files['quicklook'] = quicklook
    for parts in finished:
        parts.remove()
    return files


def check_outputs(
    scene: Scene,
    model: MapModel,
    source: str | Path,
    out: Path | None,
    *,
    probabilities: Path | None = None,
    vectors: Path | None = None,
    vector_classes: tuple[str, ...] = (),
    embeddings: Path | None = None,
    quicklook: Path | None = None,
) -> None:
    """Refuse what would fail after hours of computing, or overwrite the scene; see `make_map`.

    Raises:
        ValueError: If outputs do not fit the model, the scene or one another.
    """
    if out is None and embeddings is None:
        raise ValueError('give out for a map, or embeddings for features of patches')
    if vector_classes and vectors is None:
        raise ValueError('classes are chosen for polygons: give vectors, too')
    if out is None and (probabilities or vectors or quicklook):
        raise ValueError('probabilities, vectors and quick-look are made of a map: give out')
    if out is not None and model.function is None:
        raise ValueError(f'{source} is a backbone without a head: it has embeddings, but no map')
    if (probabilities or vectors) and not model.classes:
        raise ValueError(f'{source} predicts numbers: probabilities and polygons are of classes')
    if len(model.classes) > NODATA:
        raise ValueError(f'a map holds at most {NODATA} classes, {source} has {len(model.classes)}')
    if model.backbone.patch_embed.kind == 'temporal':
        raise ValueError(f'{source} reads series of images: a map is made of one scene')
    unknown = [name for name in vector_classes if name not in model.classes]
    if unknown:
        raise ValueError(f'the model has no class {unknown[0]!r}: its classes are {", ".join(model.classes)}')
    for path in (vectors, embeddings if embeddings and embeddings.suffix == '.parquet' else None):
        if path is not None:
            check_vector_path(path)
    itself = scene.path.resolve() if isinstance(scene.path, Path) else None
    taken = {itself}
    for path in (out, probabilities, vectors, embeddings, quicklook):
        if path is None:
            continue
        if path.resolve() in taken:
            what = 'the scene itself' if path.resolve() == itself else 'another output'
            raise ValueError(f'{path} is {what}: give every output a file of its own')
        taken.add(path.resolve())
        if scene.identity['changed'] is None and any((folder := parts_folder(path)).glob('*.npz')):
            raise ValueError(
                f'{folder} holds finished blocks, but nothing says whether {scene.path} is still what they '
                'were made of (a server that sends ETag or Last-Modified does): remove that folder to begin '
                'anew, or map a copy on disk'
            )
    for path, endings in (
        (out, _RASTERS),
        (probabilities, _RASTERS),
        (embeddings, (*_RASTERS, '.parquet')),
        (quicklook, ('.png',)),
    ):
        if path is not None and path.suffix.lower() not in endings:
            raise ValueError(f'cannot write {path.name}: give it the ending {" or ".join(endings)}')
    if vectors is not None:
        scene.check_areas()


def _fill(
    scene: Scene,
    grid: TileGrid,
    parts: Parts,
    function: Function,
    statistics: Mapping[str, list[float]],
    clip: bool,
    options: MapOptions,
    cell: int,
    finish: Callable[[Any, Any], dict[str, Any]],
    progress: Callable[[str, int, int], None],
) -> None:
    """Finish the blocks that are missing."""
    mean, std = (torch.tensor(statistics[name]) for name in ('mean', 'std'))
    blocks = grid.blocks()
    what = 'map' if cell == 1 else 'embeddings'
    with scene.open() as source:
        for number, block in enumerate(blocks):
            progress(what, number, len(blocks))
            if parts.done(number):
                continue
            kept = f'It was block {number + 1} of {len(blocks)}'
            if scene.identity['changed'] is not None:
                kept += f': the finished ones are kept in {parts.folder}, the same command goes on from there'
            try:
                values, valid = predict_block(
                    scene,
                    source,
                    grid,
                    block,
                    partial(average_maps, function, turns=options.turns),
                    mean,
                    std,
                    clip=clip,
                    cell=cell,
                    batch_size=options.batch_size,
                    workers=options.workers,
                    device=options.device,
                )
                parts.write(number, **finish(values, valid))
            except UnreadableError as error:
                raise UnreadableError(f'{str(error).rstrip()}. {kept}') from error  # a worker's has lines
            except OSError as error:
                raise OSError(f'{error.strerror or error}. {kept}') from error
    progress(what, len(blocks), len(blocks))


def _clipped(statistics: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """Start and length of SatMAE's range, two standard deviations about the mean."""
    pairs = list(zip(statistics['mean'], statistics['std'], strict=True))
    return {'mean': [mean - 2 * std for mean, std in pairs], 'std': [4 * std for _, std in pairs]}


def _pixels(model: MapModel, probabilities: bool) -> Callable[[Any, Any], dict[str, Any]]:
    """Classes, or numbers, of a block, and probabilities if they are wanted."""

    def finish(values: Any, valid: Any) -> dict[str, Any]:
        if values is None:
            values = np.zeros((model.outputs, *valid.shape), dtype=np.float32)
        if not model.classes:
            return {'map': np.where(valid, values, np.float32(np.nan))}
        found = {'map': np.where(valid, values.argmax(0), NODATA).astype(np.uint8)[None]}
        if probabilities:
            found['probabilities'] = np.where(valid, values, np.float32(np.nan))
        return found

    return finish


def _features(model: MapModel) -> Callable[[Any, Any], dict[str, Any]]:
    """Features of the patches of a block, NaN without data."""
    width = model.backbone.embed_dim

    def finish(values: Any, valid: Any) -> dict[str, Any]:
        if values is None:
            values = np.zeros((width, *valid.shape), dtype=np.float32)
        return {'embeddings': np.where(valid, values, np.float32(np.nan))}

    return finish


def _write_maps(
    scene: Scene,
    model: MapModel,
    grid: TileGrid,
    parts: Parts,
    out: Path,
    probabilities: Path | None,
    source: str,
) -> dict[str, Path]:
    place = {'crs': scene.crs, 'transform': scene.transform}
    tags = {'MODEL': Path(source).name, 'MODEL_SHA256': model.sha256, 'SCENE': scene.name}
    files = {'map': out}
    if model.classes:
        named = {f'CLASS_{i}': name for i, name in enumerate(model.classes)}
        profile = {**place, 'dtype': 'uint8', 'count': 1, 'nodata': NODATA}
        assemble(out, parts, grid, 'map', profile, colours=model.colours, names=['class'], tags=tags | named)
    else:
        profile = {**place, 'dtype': 'float32', 'count': model.outputs, 'nodata': np.nan}
        assemble(out, parts, grid, 'map', profile, tags=tags)
    if probabilities is not None:
        profile = {**place, 'dtype': 'float32', 'count': len(model.classes), 'nodata': np.nan}
        assemble(probabilities, parts, grid, 'probabilities', profile, names=model.classes, tags=tags)
        files['probabilities'] = probabilities
    return files


def _write_embeddings(
    scene: Scene, model: MapModel, grid: TileGrid, parts: Parts, out: Path, source: str
) -> Path:
    cell = model.backbone.patch_embed.patch_size
    profile = {
        'crs': scene.crs,
        'transform': scene.transform,
        'dtype': 'float32',
        'count': model.backbone.embed_dim,
        'nodata': np.nan,
    }
    tags = {'MODEL': Path(source).name, 'MODEL_SHA256': model.sha256, 'SCENE': scene.name}
    points = out.suffix == '.parquet'
    # Not beside the points, where a file of the user's may have the raster's name.
    raster = parts.folder / 'embeddings.tif' if points else out
    assemble(raster, parts, grid, 'embeddings', profile, cell=cell, tags=tags)
    if points:
        embedding_points(raster, out)
    return out
