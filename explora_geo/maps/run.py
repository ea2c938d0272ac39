"""From a scene to a map: block by block, resumable, and the files made of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray

from explora_geo.maps.grid import TileGrid
from explora_geo.maps.model import Blend, MapModel, patch_features
from explora_geo.maps.outputs import (
    NODATA,
    Layer,
    Parts,
    check_vector_path,
    draw,
    embedding_points,
    parts_folder,
    polygonise,
)
from explora_geo.maps.scene import Scene, UnreadableError
from explora_geo.models.readout import average_maps, check_turns

#: What GDAL may keep of the scene in memory, bytes: rasterio hands the number on as it is.
CACHE = 256 << 20
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class MapOptions:
    """How a map is made.

    Attributes:
        overlap: Share of a tile that the next one covers again.
        block: Side of the blocks that are finished, and kept, one by one, pixels.
        batch_size: Tiles per forward pass.
        workers: Processes that read tiles; of a scene behind a URL each fetches its own bytes.
        device: Where the model runs.
        statistics: Normalize with the statistics of the model's training images, or of the scene.
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

    def grid(self, scene: Scene, tile: int, cell: int = 1) -> TileGrid:
        """Tiles and blocks of a scene."""
        return TileGrid.create(scene.height, scene.width, tile, self.overlap, self.block, cell)


@dataclass(frozen=True)
class Outputs:
    """Files to make of a scene.

    Attributes:
        out: Cloud-Optimized GeoTIFF of classes (uint8, 255 without data) or numbers (float32).
        probabilities: GeoTIFF of a probability per class, as bands.
        vectors: File of polygons of the classes.
        vector_classes: Classes to polygonise; all if empty.
        min_area: Smallest area of a polygon, square metres.
        embeddings: GeoTIFF, or `.parquet`, of features per patch.
        quicklook: PNG of scene and map.
    """

    out: Path | None = None
    probabilities: Path | None = None
    vectors: Path | None = None
    vector_classes: tuple[str, ...] = ()
    min_area: float = 0.0
    embeddings: Path | None = None
    quicklook: Path | None = None

    def check(self, scene: Scene, model: MapModel, source: str | Path) -> None:
        """Refuse what would fail after hours of computing, or overwrite the scene; see `make_map`.

        Raises:
            ValueError: If outputs do not fit the model, the scene or one another.
        """
        if self.out is None and self.embeddings is None:
            raise ValueError('give out for a map, or embeddings for features of patches')
        if self.vector_classes and self.vectors is None:
            raise ValueError('classes are chosen for polygons: give vectors, too')
        if self.min_area and self.vectors is None:
            raise ValueError('min_area is of polygons: give vectors, too')
        if self.out is None and (self.probabilities or self.vectors or self.quicklook):
            raise ValueError('probabilities, vectors and quick-look are made of a map: give out')
        if self.out is not None and model.function is None:
            raise ValueError(f'{source} is a backbone without a head: it has embeddings, but no map')
        if (self.probabilities or self.vectors) and not model.classes:
            raise ValueError(f'{source} predicts numbers: probabilities and polygons are of classes')
        if len(model.classes) > NODATA:
            raise ValueError(f'a map holds at most {NODATA} classes, {source} has {len(model.classes)}')
        if model.backbone.patch_embed.kind == 'temporal':
            raise ValueError(f'{source} reads series of images: a map is made of one scene')
        for name in self.vector_classes:
            if name not in model.classes:
                raise ValueError(
                    f'the model has no class {name!r}: its classes are {", ".join(model.classes)}'
                )
        if self.vectors is not None:
            check_vector_path(self.vectors)
            scene.check_areas()
        if self.embeddings is not None and self.embeddings.suffix == '.parquet':
            check_vector_path(self.embeddings)
        self._check_files(scene)

    def _check_files(self, scene: Scene) -> None:
        """Every output has a file of its own with the right ending, and no blocks of an unknown scene."""
        rasters = '.tif', '.tiff'
        endings: dict[Path | None, tuple[str, ...]] = {
            self.out: rasters,
            self.probabilities: rasters,
            self.embeddings: (*rasters, '.parquet'),
            self.quicklook: ('.png',),
        }
        itself = scene.path.resolve() if isinstance(scene.path, Path) else None
        taken = {itself}
        for path in (self.out, self.probabilities, self.vectors, self.embeddings, self.quicklook):
            if path is None:
                continue
            if path.resolve() in taken:
                what = 'the scene itself' if path.resolve() == itself else 'another output'
                raise ValueError(f'{path} is {what}: give every output a file of its own')
            taken.add(path.resolve())
            if path in endings and path.suffix.lower() not in endings[path]:
                wanted = ' or '.join(endings[path])
                raise ValueError(f'cannot write {path.name}: give it the ending {wanted}')
            folder = parts_folder(path)
            if scene.identity['changed'] is None and any(folder.glob('*.npz')):
                raise ValueError(
                    f'{folder} holds finished blocks, but nothing says whether {scene.path} is still what '
                    'they were made of (a server that sends ETag or Last-Modified does): remove that folder '
                    'to begin anew, or map a copy on disk'
                )


def describe_plan(scene: Scene, model: MapModel, options: MapOptions) -> str:
    """How much there is to do to map a scene, in one sentence."""
    grid = options.grid(scene, model.tile)
    tiles = [len(grid.tiles(block)) for block in grid.blocks()]
    return (
        f'{scene.path}: {scene.width:,} x {scene.height:,} pixels, bands {", ".join(scene.bands)}; '
        f'{len(tiles):,} blocks, {sum(tiles):,} tiles of {model.tile} px, '
        f'{-(-sum(tiles) // options.batch_size):,} or more forward passes on {options.device}; normalized by '
        f'the statistics of the {options.statistics}; nothing was written'
    )


def make_map(
    scene: Scene,
    model: MapModel,
    source: str | Path,
    out: Path | None = None,
    options: MapOptions = MapOptions(),
    *,
    progress: Progress = lambda what, done, total: None,
    **files: Any,
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
        progress: Told what is done, blocks finished and their number.
        **files: Further files, see `Outputs`.

    Returns:
        The files by kind.

    Raises:
        ValueError: If the scene is smaller than a tile, or the options do not fit the model.
        OSError: If a file cannot be written.
    """
    wanted = Outputs(out, **files)
    wanted.check(scene, model, source)
    clip = bool(model.data.get('clip'))
    statistics = _statistics(scene, model, source, options, clip)
    tags = {'MODEL': Path(source).name, 'MODEL_SHA256': model.sha256, 'SCENE': scene.name}
    setting = {
        'scene': scene.identity,
        'bands': scene.bands,
        'model': model.sha256,
        'statistics': statistics,
        'clip': clip,
        **{name: getattr(options, name) for name in ('overlap', 'block', 'turns')},
    }
    mean, std = (torch.tensor(statistics[name]) for name in ('mean', 'std'))
    made: dict[str, Path] = {}
    kept: list[Parts] = []  # until all is written, so that the same command goes on from them

    def rasters(function: Any, grid: TileGrid, parts: Parts, layers: Mapping[str, Layer]) -> None:
        turned = partial(average_maps, function, turns=options.turns)
        how = options.batch_size, options.workers, options.device
        blend = Blend(scene, grid, turned, mean, std, clip, *how)
        kept.append(parts)
        _fill(blend, parts, layers, progress)
        for key, layer in layers.items():
            layer.write(scene, grid, parts, key)
            made[key] = layer.path

    with rasterio.Env(GDAL_CACHEMAX=CACHE):
        if out is not None:
            named = {f'CLASS_{i}': name for i, name in enumerate(model.classes)}
            names = ['class'] if model.classes else []
            count = 1 if model.classes else model.outputs
            layers = {'map': Layer(out, count, names, model.colours, tags | named)}
            if wanted.probabilities is not None:
                layers['probabilities'] = Layer(
                    wanted.probabilities, len(model.classes), model.classes, tags=tags
                )
            grid = options.grid(scene, model.tile)
            parts = Parts(out, {**setting, 'probabilities': len(layers) > 1})
            rasters(model.function, grid, parts, layers)
        if wanted.embeddings is not None:
            vit = model.backbone.eval()
            cell = vit.patch_embed.patch_size
            grid = options.grid(scene, model.tile, cell)
            parts = Parts(wanted.embeddings, {**setting, 'embeddings': cell})
            points = wanted.embeddings.suffix == '.parquet'
            # Not beside the points, where a file of the user's may have the raster's name.
            raster = parts.folder / 'embeddings.tif' if points else wanted.embeddings
            layers = {'embeddings': Layer(raster, vit.embed_dim, tags=tags)}
            rasters(patch_features(vit), grid, parts, layers)
            if points:
                embedding_points(raster, wanted.embeddings)
            made['embeddings'] = wanted.embeddings
        if out is not None and wanted.vectors is not None:
            polygonise(out, wanted.vectors, model.classes, wanted.vector_classes, wanted.min_area)
            made['vectors'] = wanted.vectors
        if out is not None and wanted.quicklook is not None:
            title = f'{scene.name}: {Path(source).name}'
            draw(wanted.quicklook, scene, out, model.classes, model.colours, title)
            made['quicklook'] = wanted.quicklook
    for parts in kept:
        parts.remove()
    return made


def _statistics(
    scene: Scene, model: MapModel, source: str | Path, options: MapOptions, clip: bool
) -> Mapping[str, list[float]]:
    """Mean and standard deviation; of a scene that is clipped, start and length of SatMAE's range."""
    if options.statistics == 'model':
        if 'mean' not in model.data or 'std' not in model.data:
            raise ValueError(
                f'{source} does not state the mean and standard deviation of its training images: give '
                '--statistics scene to take those of the scene'
            )
        return {'mean': model.data['mean'], 'std': model.data['std']}
    found = scene.statistics()
    if not clip:
        return found
    mean, std = (np.array(found[name]) for name in ('mean', 'std'))
    return {'mean': (mean - 2 * std).tolist(), 'std': (4 * std).tolist()}


def _fill(blend: Blend, parts: Parts, layers: Mapping[str, Layer], progress: Progress) -> None:
    """Finish the blocks that are missing."""
    blocks, what = blend.grid.blocks(), next(iter(layers))
    with blend.scene.open() as source:
        for number, block in enumerate(blocks):
            progress(what, number, len(blocks))
            if parts.file(number).is_file():
                continue
            kept = f'It was block {number + 1} of {len(blocks)}'
            if blend.scene.identity['changed'] is not None:
                kept += f': the finished ones are kept in {parts.folder}, the same command goes on from there'
            try:
                values, valid = blend.predict(source, block)
                parts.write(number, {k: _finish(values, valid, layer) for k, layer in layers.items()})
            except UnreadableError as error:
                raise UnreadableError(f'{str(error).rstrip()}. {kept}') from error  # a worker's has lines
            except OSError as error:
                raise OSError(f'{error.strerror or error}. {kept}') from error
    progress(what, len(blocks), len(blocks))


def _finish(values: NDArray[np.float32] | None, valid: NDArray[np.bool_], layer: Layer) -> NDArray[Any]:
    """What a layer keeps of a block: the class of the largest value, or the values; and where no data is."""
    if layer.colours:
        best = np.zeros(valid.shape) if values is None else values.argmax(0)
        return np.where(valid, best, NODATA).astype(np.uint8)[None]
    return np.where(valid, np.zeros((layer.count, 1, 1)) if values is None else values, np.nan).astype(
        np.float32
    )
