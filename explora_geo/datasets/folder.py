"""Any folder of images as a dataset."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..bands import name_bands, spell
from .base import TileDataset, Transforms, former_name
from .files import PathLike, evenly_spaced, find_images, locate_images, subfolders
from .images import BadTileError, Header, depth, read_header

#: Files opened to tell a folder of gray images from a color one with some gray images.
PROBES = 16
#: Names of folders that are parts of a data set, not classes.
PARTS = frozenset({'train', 'training', 'val', 'valid', 'validation', 'test', 'testing'})


class FolderDataset(TileDataset):
    """A folder of image tiles of any file type, pixel type and band count.

    A folder whose sub-folders hold images is read as one class per sub-folder, unless these are the parts of
    a data set (train, val, test); any other folder is read as unlabeled. Plain images (JPEG, PNG, ...) are
    read with Pillow, rasters (GeoTIFF, JPEG 2000, ...) with rasterio. Palette and CMYK images become red,
    green and blue, and the alpha channel of a plain RGBA image is dropped unless four bands are named.
    """

    def __init__(
        self,
        root: PathLike,
        bands: Sequence[str] | None = None,
        file_bands: Sequence[str] | None = None,
        labeled: bool | None = None,
        size: int | None = None,
        min_size: int = 1,
        strict: bool = False,
        cache: bool = False,
        transforms: Transforms | None = None,
        is_valid_file: Callable[[Path], bool] | None = None,
        **former: Any,
    ) -> None:
        """Initialize a new FolderDataset instance.

        Args:
            root: Folder of images, a list of image files (text, CSV or Parquet) or a pattern such as
                ``tiles/*/*.tif``.
            bands: Names of the bands to return, in any order; all bands if None.
            file_bands: Names of all bands in file order. By default the band descriptions stored
                in the files, or red, green and blue for 8-bit images of three bands.
            labeled: Whether sub-folders are classes; if None, they are if every image lies in
                one.
            size: Side of the returned images: the shorter side is resized and the center cropped.
                Images keep their size if None.
            min_size: Images with a shorter side below this, before resizing, are not used.
            strict: Whether to raise on a tile that cannot be used instead of skipping it.
            cache: Whether to keep decoded tiles in memory, in their own pixel type. Each worker
                process keeps its own.
            transforms: Function applied to each sample.
            is_valid_file: Function that tells whether a file belongs to the dataset.
            **former: ``labelled``, the former name of *labeled*.

        Raises:
            FileNotFoundError: If the folder does not exist or holds no image.
            ValueError: If band names, class folders or sizes do not fit.
        """
        labeled = former_name(former, 'labelled', 'labeled', labeled)
        if former:
            raise TypeError(f'unknown arguments {", ".join(former)}')
        self.root, found = locate_images(root)
        files = found if is_valid_file is None else [path for path in found if is_valid_file(path)]
        if not files:
            which = ' that belongs to this split' if is_valid_file is not None else ''
            raise FileNotFoundError(
                f'{self.root} holds no image{which} (looked for JPEG, PNG, GeoTIFF and the like, '
                'also in sub-folders); check the path.'
            )
        classes = _find_classes(self.root, files, labeled)
        number = {name: i for i, name in enumerate(classes)}
        labels = [number[path.relative_to(self.root).parts[0]] for path in files] if classes else None
        path, header = _probe(self.root, files, None if file_bands is None else spell(file_bands), strict)
        self.file_bands = name_bands(header.count, header.dtype, header.descriptions, file_bands, str(path))
        self.dtype, self.by_name = header.dtype, file_bands is None
        super().__init__(self.root, files, labels, classes, bands, size, strict, transforms, min_size, cache)


def _find_classes(root: Path, files: Sequence[Path], labeled: bool | None) -> tuple[str, ...]:
    """Name the classes, or return nothing if the folder is unlabeled."""
    if labeled is False:
        return ()
    loose = [path for path in files if path.parent == root]
    if labeled and loose:
        raise ValueError(
            f'labeled=True needs every image in a class folder, but {len(loose)} lie directly '
            f'in {root}, first {loose[0].name}; move them.'
        )
    if labeled is None:
        return class_folders(root, files)
    classes = tuple(sorted({path.relative_to(root).parts[0] for path in files}))
    others = [p for p in subfolders(root) if p.name not in classes]
    empty = [p.name for p in others if not find_images(p)]
    if empty:
        raise ValueError(
            f'labeled=True needs images in every class folder, but {empty} in {root} '
            'hold none; fill or remove them.'
        )
    return classes


def _probe(
    root: Path, files: Sequence[Path], names: tuple[str, ...] | None, strict: bool
) -> tuple[Path, Header]:
    """Find a representative file, with the bands named if there is one."""
    found: list[tuple[Path, Header]] = []
    reason = ''
    steps = evenly_spaced(len(files), PROBES)
    for index in steps:
        path = files[index]
        try:
            found.append((path, read_header(path, names)))
        except BadTileError as error:
            if strict and not found:
                raise ValueError(
                    f'{path}: {error}; repair or remove the file, or set strict=False.'
                ) from error
            reason = reason or f'{path}: {error}'
    if not found:
        raise ValueError(
            f'None of the {len(steps)} images looked at in {root} can be read '
            f'(first {reason}); check that they are complete image files.'
        )
    if names is not None:
        settled = [f for f in found if f[1].count == len(names)]
    else:
        # Gray images may be the colorless ones of a color set.
        settled = [f for f in found if f[1].count != 1 or f[1].dtype != 'uint8']
    settled = settled or found
    # The usual range is that of most images, whichever comes first.
    usual = Counter(depth(header.dtype) for _, header in settled).most_common(1)[0][0]
    return next(f for f in settled if depth(f[1].dtype) == usual)


def class_folders(root: Path, files: Iterable[Path]) -> tuple[str, ...]:
    """Name the classes of images, one per folder below the root.

    Args:
        root: Folder that holds all images.
        files: The images.

    Returns:
        Names in sorted order; none if an image lies in the root, or the folders are parts of a data set.
    """
    below = [path.relative_to(root).parts for path in files]
    names = {parts[0] for parts in below}
    if any(len(parts) == 1 for parts in below) or PARTS.issuperset(name.lower() for name in names):
        return ()
    return tuple(sorted(names))
