"""Inspect an image archive, choose the data module to train on it, and find labeled tiles that match it."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor
from torch.utils.data import Subset

from explora_geo.bands import RGB, spell
from explora_geo.datamodules.base import TileDataModule
from explora_geo.datamodules.folder import FolderDataModule
from explora_geo.datamodules.scenes import SceneDataModule
from explora_geo.datamodules.statistics import usable
from explora_geo.datasets import PackedDataset, collate_skipping
from explora_geo.datasets.files import evenly_spaced
from explora_geo.datasets.folder import class_folders
from explora_geo.datasets.images import Header, depth
from explora_geo.datasets.packed import is_pack
from explora_geo.datasets.remote import PathLike
from explora_geo.datasets.survey import (
    OPENED,
    Survey,
    UnnamedBandsError,
    choose_bands,
    names_for_dataset,
    sample_values,
    survey,
)

#: Largest default side of images, pixels.
LARGEST = 224
#: Georeferenced rasters of at least this side are scenes.
SCENE = 448
#: Patches per side that small tiles are enlarged to, at most twofold.
PATCHES = 8
#: Minimum number of labeled tiles per class.
LEAST = 3

_MODULES: dict[str, Any] = {'tiles': FolderDataModule, 'pack': FolderDataModule, 'scenes': SceneDataModule}


@dataclass(frozen=True)
class Archive:
    """Properties of an archive, as found by `look`."""

    source: str  # the archive as it was given
    kind: Literal['tiles', 'pack', 'scenes']  # image tiles, a pack of them, or scenes to be cut into windows
    count: int  # tiles or scenes
    opened: int  # number of files inspected
    skipped: tuple[str, ...]  # unusable ones among these, `<path>: <reason>`
    size: tuple[int, int]  # median height and width, pixels
    file_bands: tuple[str, ...]  # names of all bands in file order
    bands: tuple[str, ...]  # names of the bands to train on, in order
    dtype: str  # NumPy name of the pixel type
    low: float  # smallest value of these bands in a sample of valid pixels
    high: float  # largest value
    nodata: float  # share of nodata pixels in the sample, in [0, 1]
    crs: str | None  # most common coordinate reference system
    classes: tuple[str, ...]  # names of the class folders, empty if there are none
    images: int  # per epoch: tiles, or windows that fit side by side into the scenes
    image_size: int  # side of the images to train on, pixels
    settings: dict[str, Any] = field(repr=False)  # class_path and init_args of the data module, as in YAML

    def datamodule(self, **options: Any) -> TileDataModule:
        """Make the data module to train on the archive; *options* replace the chosen arguments."""
        return _MODULES[self.kind](**{**self.settings['init_args'], **options})

    def facts(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return asdict(self)

    def sentences(self) -> str:
        """Summarize the archive in at most two lines."""
        what = {'scenes': 'scene', 'pack': 'packed tile', 'tiles': 'tile'}[self.kind]
        height, width = self.size
        size = f'{height} px' if height == width else f'{height} x {width} px'
        classes = f' in {len(self.classes)} class folders' if self.classes else ''
        rest = '' if len(self.bands) == len(self.file_bands) else f' of {len(self.file_bands)} bands'
        first = (
            f'{self.source}: {self.count:,} {what}{"s"[: self.count != 1]} of {size}{classes}, '
            f'{", ".join(self.bands)}{rest}, {self.dtype} from {self.low:.4g} to {self.high:.4g}.'
        )
        empty = f'{100 * self.nodata:.1f} % nodata' if self.nodata else None
        text = ', '.join(filter(None, [self.crs, empty]))
        if self.skipped:
            checked = f'{len(self.skipped)} of {self.opened} files checked'
            text += f'{"; " * bool(text)}{checked} cannot be used (first: {self.skipped[0]})'
        return f'{first}\n{text}.' if text else first


def look(
    archive: PathLike | Sequence[PathLike],
    bands: str | Sequence[str] | None = None,
    patch_size: int = 16,
    image_size: int | None = None,
    kind: Literal['tiles', 'scenes'] | None = None,
    batch_size: int = 64,
) -> Archive:
    """Inspect the content of an archive and choose how to train on it.

    At most 200 evenly spaced files are opened, and 32 of them decoded. Red, green and blue are found by band
    name or by GeoTIFF color interpretation, or assumed in 8-bit images with three bands. Up to one file in
    twenty may differ from the rest and is skipped.

    Args:
        archive: Folder of tiles with or without class folders, pack, scenes (files, folder, pattern, URL,
            anything GDAL opens), list of files (text, CSV, Parquet), or a sequence of scenes.
        bands: Names of the bands to use, in order, as a sequence or comma-separated; `name=number` names a
            band by its number in the files, from 1. If None, red, green and blue, or all bands if these are
            missing.
        patch_size: Patch side of the model, pixels.
        image_size: Side of the images, pixels; chosen from the data if None, see `default_size`.
        kind: Whether images are tiles or scenes. If None, georeferenced rasters of 448 px and more, single
            files and remote files are scenes.
        batch_size: Images per batch, limited to the number of tiles.

    Returns:
        The properties of the archive.

    Raises:
        FileNotFoundError: If there is no such archive, or it is empty.
        ValueError: If files cannot be read or differ in their bands, bands are unnamed or missing, or images
            are smaller than a patch.
    """
    path = os.fspath(archive) if isinstance(archive, str | os.PathLike) else None
    pack = PackedDataset(path) if path is not None and is_pack(path) else None
    found = survey(archive) if pack is None else _survey_pack(pack)
    usual = found.found[0]
    file_bands, positions = choose_bands(bands, usual, found.source)
    chosen = tuple(file_bands[i] for i in positions)
    init: dict[str, Any] = {'bands': list(chosen)}
    if pack is None:
        sort: Any = _choose_kind(found, kind)
        classes = class_folders(found.root, map(Path, found.files)) if sort == 'tiles' and found.root else ()
        init['file_bands'] = names_for_dataset(usual, file_bands)
    elif file_bands == pack.file_bands:
        sort, classes = 'pack', pack.classes
    else:
        raise ValueError(f'bands of the pack {path} cannot be renamed; use {", ".join(pack.file_bands)}')
    size = _choose_size(found, patch_size, image_size, sort != 'scenes')
    values, damaged = (
        sample_values(found, file_bands, positions) if pack is None else _pack_values(pack, positions)
    )
    images = len(found.files)
    if sort == 'scenes':
        windows = [max(1, f.height // size) * max(1, f.width // size) for f in found.found]
        images = max(1, round(images * sum(windows) / (len(windows) + len(found.skipped))))
        paths = path if path is not None and os.path.isdir(path) else [str(file) for file in found.files]
        init = {'paths': paths, **init, 'patch_size': size, 'length': max(images, batch_size)}
    else:
        batch_size = min(batch_size, images)
        init = {'root': found.source, **init, 'image_size': size}
    # Weights trained on natural images expect these statistics; other bands and ranges have their own.
    statistic = 'imagenet' if spell(chosen) == RGB and usual.dtype == 'uint8' else 'auto'
    init |= {'batch_size': batch_size, 'statistics': {'mean': statistic, 'std': statistic}}
    return Archive(
        found.source,
        sort,
        len(found.files),
        len(found.found) + len(found.skipped),
        (*found.skipped, *damaged),
        found.size,
        file_bands,
        chosen,
        usual.dtype,
        *values,
        found.crs,
        classes,
        images,
        size,
        {'class_path': f'explora_geo.datamodules.{_MODULES[sort].__name__}', 'init_args': init},
    )


def default_size(side: int, patch_size: int, enlarge: bool = True) -> int:
    """Return the image side for tiles whose shorter side is *side*: a multiple of the patch, at most 224 px.

    With *enlarge*, images may be larger than the tiles: rounded up to the next multiple, and up to twofold
    for tiles of fewer than 8 x 8 patches.
    """
    largest = max(LARGEST // patch_size, 1) * patch_size
    if not enlarge:
        return min(largest, side // patch_size * patch_size)
    wanted = max(side, min(PATCHES * patch_size, 2 * side))
    return min(largest, -(-wanted // patch_size) * patch_size)


def _survey_pack(pack: PackedDataset) -> Survey:
    """Describe a pack as an archive of its tiles."""
    count, _, height, width = pack.header.shape
    header = Header(pack.root, pack.header.dtype, pack.file_bands, height, width)
    return Survey(str(pack.root), pack.root, [*pack.files], [header] * min(count, OPENED), [])


def _pack_values(
    pack: PackedDataset, positions: Sequence[int]
) -> tuple[tuple[float, float, float], list[str]]:
    """Return the smallest and largest value of some tiles, 0 for nodata, and the skipped tiles."""
    seen = [pack[i] for i in evenly_spaced(len(pack), OPENED)]
    images = [image[list(positions)] for image in usable(seen, pack.root)]
    low, high = min(float(x.min()) for x in images), max(float(x.max()) for x in images)
    return (low, high, 0.0), [sample['skipped'] for sample in seen if 'skipped' in sample]


def _choose_kind(found: Survey, wanted: Literal['tiles', 'scenes'] | None) -> Literal['tiles', 'scenes']:
    large = found.crs is not None and min(found.size) >= SCENE
    kind = wanted or ('scenes' if large or found.root is None else 'tiles')
    if kind == 'scenes' and found.crs is None:
        raise ValueError(
            f'{found.source} has no coordinate reference system, so it is not a scene; pass a folder of '
            'tiles, or georeference it'
        )
    if kind == 'tiles' and found.root is None:
        raise ValueError(
            f'to read {found.source} as tiles, pass their folder, a pattern, or a text file that lists them'
        )
    return kind


def _choose_size(found: Survey, patch_size: int, wanted: int | None, enlarge: bool) -> int:
    """Choose the side of the images; raise ValueError if it or the archive's images do not suit the patch."""
    height, width = found.size
    if min(height, width) < patch_size:
        raise ValueError(
            f'the images in {found.source} are {height} x {width} pixels, smaller than a patch of '
            f'{patch_size} x {patch_size}; use larger images, or weights with smaller patches'
        )
    if wanted is not None and (wanted < patch_size or wanted % patch_size):
        raise ValueError(f'image_size must be a multiple of the patch size {patch_size}, got {wanted}')
    return wanted or default_size(min(height, width), patch_size, enlarge)


class LabeledTiles(Subset[dict[str, Any]]):
    """Tiles in class folders, for scoring only: evenly spaced, with the same limit for each class.

    They have the bands and image size of the archive; `classes` holds the class names in label order.
    """

    def __init__(self, folder: PathLike, archive: Archive, limit: int = 2000) -> None:
        """Find labeled tiles that match an archive.

        Args:
            folder: Folder with one folder per class.
            archive: The archive that a model is adapted to.
            limit: Maximum number of tiles.

        Raises:
            FileNotFoundError: If there is no such folder, or it is empty.
            ValueError: If it has no class folders, has too few tiles of a class, or differs from the archive
                in bands or pixel type.
        """
        try:
            found = look(folder, archive.bands, 1, archive.image_size, kind='tiles')
        except UnnamedBandsError:
            # Unnamed bands take the archive's order, as named by the user.
            numbers = [f'{b}={archive.file_bands.index(b) + 1}' for b in archive.bands]
            found = look(folder, numbers, 1, archive.image_size, kind='tiles')
        if len(found.classes) < 2:
            raise ValueError(
                f'labeled tiles in {found.source} must be in at least two class folders, such as '
                f'{os.path.join(found.source, "forest", "1.tif")}, found {len(found.classes)}'
            )
        if depth(found.dtype) != depth(archive.dtype):
            raise ValueError(
                f'labeled tiles in {found.source} have {found.dtype} pixels, but the archive '
                f'{archive.source} has {archive.dtype}; use labeled tiles with the same pixel type'
            )
        dataset: Any = found.datamodule().make('train')
        self.classes, labels = dataset.classes, np.array(dataset.labels)
        members = [np.flatnonzero(labels == number).tolist() for number in range(len(self.classes))]
        few = min(range(len(members)), key=lambda c: len(members[c]))
        if len(members[few]) < LEAST:
            raise ValueError(
                f'labeled tiles in {found.source} must include at least {LEAST} per class, for training, '
                f'validation and testing, got {len(members[few])} of {self.classes[few]}'
            )
        share = max(1, limit // len(self.classes))
        super().__init__(dataset, sorted(m[i] for m in members for i in evenly_spaced(len(m), share)))

    def batches(self, datamodule: TileDataModule, size: int = 64) -> Iterator[dict[str, Tensor]]:
        """Read the tiles in batches, normalized like the archive's.

        Args:
            datamodule: The archive's data module, already set up.
            size: Tiles per batch.

        Yields:
            `image`, shape (B, C, H, W), and `label`, shape (B,); damaged tiles are left out.
        """
        for start in range(0, len(self), size):
            batch = collate_skipping([self[i] for i in range(start, min(start + size, len(self)))])
            if 'image' in batch:
                yield datamodule.aug(batch)
