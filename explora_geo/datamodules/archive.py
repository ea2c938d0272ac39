"""Look at an archive of images, and choose the data module that trains on it."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ..bands import RGB, canonical, spell
from ..datasets.band_choice import choose_bands, names_for_dataset
from ..datasets.files import PathLike, evenly_spaced, is_remote
from ..datasets.folder import class_folders
from ..datasets.packed import PackedDataset, is_pack
from ..datasets.survey import OPENED, FileFacts, Survey, sample_values, survey
from .base import TileDataModule
from .folder import FolderDataModule
from .scenes import SceneDataModule

#: Side of the largest image by default.
LARGEST = 224
#: Georeferenced rasters of at least this side are scenes.
SCENE = 448
#: Patches on a side that small tiles are enlarged to, at most twofold.
PATCHES = 8

_MODULES: dict[str, Any] = {'tiles': FolderDataModule, 'pack': FolderDataModule, 'scenes': SceneDataModule}


@dataclass(frozen=True)
class Archive:
    """What `look` found in an archive.

    Attributes:
        source: The archive as it was given.
        kind: Image tiles, a pack of them, or scenes that are cut into windows.
        count: Tiles or scenes.
        opened: How many of them were looked at.
        skipped: Those of them that cannot be used, `<path>: <reason>`.
        size: Median height and width, pixels.
        file_bands: Names of all bands in file order.
        bands: Names of the bands to train on, in order.
        dtype: NumPy name of the pixel type.
        low: Smallest value of these bands in a sample of pixels with data.
        high: Largest value.
        nodata: Share of pixels without data in the sample, in [0, 1].
        crs: Coordinate reference system of most files, or None.
        classes: Names of the class folders, empty if there are none.
        images: Images of one pass: tiles, or windows that fit side by side into the scenes.
        image_size: Side of the images to train on, pixels.
        settings: `class_path` and `init_args` of the data module, as YAML takes them.
    """

    source: str
    kind: Literal['tiles', 'pack', 'scenes']
    count: int
    opened: int
    skipped: tuple[str, ...]
    size: tuple[int, int]
    file_bands: tuple[str, ...]
    bands: tuple[str, ...]
    dtype: str
    low: float
    high: float
    nodata: float
    crs: str | None
    classes: tuple[str, ...]
    images: int
    image_size: int
    settings: dict[str, Any] = field(repr=False)

    @property
    def rgb(self) -> bool:
        """Whether the bands to train on are red, green and blue, in this order."""
        return tuple(map(canonical, self.bands)) == RGB

    def datamodule(self, **options: Any) -> TileDataModule:
        """Make the data module that trains on the archive.

        Args:
            **options: Arguments of the data module that replace those chosen, such as `num_workers`.
        """
        return _MODULES[self.kind](**{**self.settings['init_args'], **options})

    def facts(self) -> dict[str, Any]:
        """Fields as JSON-ready values."""
        return asdict(self)

    def sentences(self) -> str:
        """What was found, in at most two lines."""
        what = {'scenes': 'scene', 'pack': 'packed tile', 'tiles': 'tile'}[self.kind]
        height, width = self.size
        size = f'{height} px' if height == width else f'{height} x {width} px'
        classes = f' in {len(self.classes)} class folders' if self.classes else ''
        rest = '' if len(self.bands) == len(self.file_bands) else f' of {len(self.file_bands)} bands'
        first = (
            f'{self.source}: {self.count:,} {what}{"s"[: self.count != 1]} of {size}{classes}, '
            f'{", ".join(self.bands)}{rest}, {self.dtype} from {self.low:.4g} to {self.high:.4g}.'
        )
        place = ([self.crs] if self.crs else []) + (
            [f'{100 * self.nodata:.1f} % nodata'] if self.nodata else []
        )
        second = [', '.join(place)] if place else []
        if self.skipped:
            looked = f'{len(self.skipped)} of {self.opened} files looked at'
            second.append(f'{looked} cannot be used, first {self.skipped[0]}')
        return '\n'.join([first, '; '.join(second) + '.'] if second else [first])


def look(
    archive: PathLike | Sequence[PathLike],
    bands: str | Sequence[str] | None = None,
    patch_size: int = 16,
    image_size: int | None = None,
    kind: Literal['tiles', 'scenes'] | None = None,
    batch_size: int = 64,
) -> Archive:
    """Look at an archive: what it holds, and how to train on it.

    At most 200 evenly spaced files are opened, and pixels of 32. Red, green and blue are found by the names
    of the bands, by the color interpretation of GeoTIFF, or taken for granted in 8-bit images of three bands.
    Up to one file in twenty may be unlike the others and is skipped.

    Args:
        archive: Folder of tiles with or without class folders, pack, scenes (files, folder, pattern, URL,
            whatever GDAL opens), list of files (text, CSV, Parquet), or a sequence of scenes.
        bands: Names of the bands to use, in order, as a sequence or with commas; `name=number` names a band
            by its number in the files, from 1. If None, red, green and blue, or all bands where there are
            no such.
        patch_size: Patch side of the model, pixels.
        image_size: Side of the images, pixels; by the data if None, see `default_size`.
        kind: Whether images are tiles or scenes. If None, georeferenced rasters of 448 px and more, single
            files and remote ones are scenes.
        batch_size: Images in a batch; at most as many as there are tiles.

    Returns:
        What was found.

    Raises:
        FileNotFoundError: If there is no such archive, or it is empty.
        ValueError: If files cannot be read or differ in their bands, bands have no names or do not exist, or
            images are smaller than a patch.
    """
    path = os.fspath(archive) if isinstance(archive, str | os.PathLike) else None
    if path is not None and not is_remote(path) and is_pack(path):
        return _look_at_pack(path, bands, patch_size, image_size, batch_size)
    found = survey(archive)
    file_bands, positions = choose_bands(bands, found.usual, found.source)
    sort = kind or _kind(found)
    _check_kind(sort, found)
    size = _settle_size(found.source, found.size, patch_size, image_size, sort == 'tiles')
    values, damaged = sample_values(found, file_bands, positions)
    chosen = tuple(file_bands[i] for i in positions)
    named = {'bands': list(chosen), 'file_bands': names_for_dataset(found.usual, file_bands)}
    init: dict[str, Any]
    if sort == 'tiles':
        images = len(found.files)
        batch = min(batch_size, images)
        init = {'root': found.source, **named, 'image_size': size}
    else:
        windows = [max(1, f.height // size) * max(1, f.width // size) for f in found.found]
        images = max(1, round(len(found.files) * sum(windows) / (len(windows) + len(found.skipped))))
        batch = batch_size
        paths = path if path is not None and os.path.isdir(path) else found.files
        init = {'paths': paths, **named, 'patch_size': size, 'length': max(images, batch_size)}
    return Archive(
        found.source,
        sort,
        len(found.files),
        len(found.found) + len(found.skipped),
        (*found.skipped, *damaged),
        found.size,
        file_bands,
        chosen,
        found.usual.dtype,
        *values,
        found.crs,
        class_folders(found.root, map(Path, found.files)) if sort == 'tiles' and found.root else (),
        images,
        size,
        _settings(sort, init, batch, chosen, found.usual.dtype),
    )


def default_size(side: int, patch_size: int, enlarge: bool = True) -> int:
    """Side of images that suits tiles: a multiple of the patch, at most 224 px.

    Args:
        side: Shorter side of the tiles, or of scenes, pixels.
        patch_size: Patch side, pixels.
        enlarge: Whether images may be larger than the tiles: up to the next multiple, and small tiles up to
            twofold where they have less than 8 x 8 patches.
    """
    largest = max(LARGEST // patch_size, 1) * patch_size
    if not enlarge:
        return min(largest, side // patch_size * patch_size)
    wanted = max(side, min(PATCHES * patch_size, 2 * side))
    return min(largest, -(-wanted // patch_size) * patch_size)


def _look_at_pack(
    source: str, bands: str | Sequence[str] | None, patch_size: int, image_size: int | None, batch_size: int
) -> Archive:
    pack = PackedDataset(source)
    count, _, height, width = pack.header.shape
    dtype = pack.header.dtype
    facts = FileFacts(source, pack.file_bands, True, dtype, height, width)
    file_bands, positions = choose_bands(bands, facts, source)
    if file_bands != pack.file_bands:
        raise ValueError(f'The pack {source} names its bands: {", ".join(pack.file_bands)}; use these names.')
    chosen = tuple(file_bands[i] for i in positions)
    size = _settle_size(source, (height, width), patch_size, image_size, True)
    sample = PackedDataset(source, chosen)
    seen = [sample[i] for i in evenly_spaced(count, OPENED)]
    usable = [s['image'] for s in seen if 'image' in s]
    if not usable:
        raise ValueError(f'None of the {len(seen)} tiles looked at in {source} can be used; pack it again.')
    low, high = (float(getattr(torch.stack([getattr(x, f)() for x in usable]), f)()) for f in ('min', 'max'))
    skipped = tuple(s['skipped'] for s in seen if 'skipped' in s)
    init = {'root': source, 'bands': list(chosen), 'image_size': size}
    settings = _settings('pack', init, min(batch_size, count), chosen, dtype)
    return Archive(
        *(source, 'pack', count, len(seen), skipped, (height, width), file_bands, chosen, dtype),
        *(low, high, 0.0, None, pack.classes, count, size, settings),
    )


def _kind(found: Survey) -> Literal['tiles', 'scenes']:
    large = found.crs is not None and min(found.size) >= SCENE
    return 'scenes' if large or found.root is None else 'tiles'


def _check_kind(kind: str, found: Survey) -> None:
    if kind == 'scenes' and found.crs is None:
        raise ValueError(
            f'{found.source} has no coordinate reference system and is no scene: give a folder of tiles, or '
            'georeference it.'
        )
    if kind == 'tiles' and found.root is None:
        raise ValueError(
            f'{found.source} are tiles: give their folder, a pattern, or a text file that lists them.'
        )


def _settle_size(
    source: str, size: tuple[int, int], patch_size: int, wanted: int | None, enlarge: bool
) -> int:
    """Side of the images, for which those of the archive are large enough."""
    height, width = size
    if min(size) < patch_size:
        raise ValueError(
            f'The images of {source} have {height} x {width} pixels, less than a patch of {patch_size} x '
            f'{patch_size}: give larger images, or weights of smaller patches.'
        )
    if wanted is not None and (wanted < patch_size or wanted % patch_size):
        raise ValueError(f'image_size must be a multiple of the patch of {patch_size} pixels, got {wanted}.')
    return wanted or default_size(min(size), patch_size, enlarge)


def _settings(
    kind: str, init: dict[str, Any], batch_size: int, bands: Sequence[str], dtype: str
) -> dict[str, Any]:
    """Class and arguments of the data module, as YAML takes them."""
    # Weights of natural images were trained on these statistics; other bands and ranges have their own.
    statistic = 'imagenet' if spell(bands) == RGB and dtype == 'uint8' else 'auto'
    arguments = {**init, 'batch_size': batch_size, 'statistics': {'mean': statistic, 'std': statistic}}
    return {'class_path': f'explora_geo.datamodules.{_MODULES[kind].__name__}', 'init_args': arguments}
