"""Any folder of images as a dataset."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from explora_geo.bands import name_bands, spell
from explora_geo.datasets.base import TileDataset
from explora_geo.datasets.files import locate_images, no_images
from explora_geo.datasets.images import Header, depth, read_headers
from explora_geo.datasets.remote import PathLike

#: Files opened to tell a folder of gray images from a color one with some gray images.
PROBES = 16
#: Names of folders that are parts of a data set, not classes.
PARTS = frozenset({'train', 'training', 'val', 'valid', 'validation', 'test', 'testing'})


class FolderDataset(TileDataset):
    """A folder of image tiles of any file type, pixel type and band count.

    If all images lie in subfolders, each subfolder is a class, unless these are the parts of a data set
    (train, val, test); any other folder is read as unlabeled. Plain images (JPEG, PNG, ...) are read with
    Pillow, rasters (GeoTIFF, JPEG 2000, ...) with rasterio. Palette and CMYK images become red, green and
    blue, and the alpha channel of a plain RGBA image is dropped unless four bands are named.
    """

    def __init__(
        self,
        root: PathLike,
        bands: Sequence[str] | None = None,
        file_bands: Sequence[str] | None = None,
        labeled: bool | None = None,
        is_valid_file: Callable[[Path], bool] | None = None,
        **kwargs: Any,
    ) -> None:
        """Initialize a new FolderDataset instance.

        Args:
            root: Folder of images, a list of image files (text, CSV or Parquet) or a pattern such as
                ``tiles/*/*.tif``.
            bands: Names of the bands to return, in any order; all bands if None.
            file_bands: Names of all bands in file order. Defaults to the band descriptions stored in
                the files, or to red, green and blue for 8-bit images with three bands.
            labeled: Whether subfolders are classes; if None, they are if every image lies in
                one.
            is_valid_file: Function that tells whether a file belongs to the dataset.
            **kwargs: ``size``, ``min_size``, ``strict``, ``cache`` and ``transforms``; see
                :class:`TileDataset`.

        Raises:
            FileNotFoundError: If the folder does not exist or holds no image.
            ValueError: If band names, class folders or sizes are invalid.
        """
        folder, found = locate_images(root)
        if folder is None:
            raise ValueError(f'{root} lists images that are not files on disk; read them as scenes')
        paths = [Path(path) for path in found]
        files = [path for path in paths if is_valid_file is None or is_valid_file(path)]
        if not files:
            raise no_images(folder, ' for this split' if is_valid_file is not None else '')
        loose = [path for path in files if path.parent == folder]
        if labeled and loose:
            raise ValueError(
                f'labeled=True requires every image to be in a class folder, but {len(loose)} are directly '
                f'in {folder} (first: {loose[0].name}); move them'
            )
        classes = () if labeled is False else class_folders(folder, files, () if labeled else PARTS)
        if classes:  # a class without an image in this split must not shift the other labels
            classes = class_folders(folder, (path for path in paths if path.parent != folder), ())
        number = {name: i for i, name in enumerate(classes)}
        labels = [number[path.relative_to(folder).parts[0]] for path in files] if classes else None
        header = _representative(folder, files, None if file_bands is None else spell(file_bands))
        self.file_bands = name_bands(
            header.count, header.dtype, header.descriptions, file_bands, str(header.path)
        )
        self.dtype, self.by_name = header.dtype, file_bands is None
        super().__init__(folder, files, labels, classes, bands, **kwargs)


def _representative(root: Path, files: Sequence[Path], names: tuple[str, ...] | None) -> Header:
    """Return the header of a typical file, if possible with as many bands as are named."""
    found, _ = read_headers(files, PROBES, root, names)
    if names is not None:
        settled = [header for header in found if header.count == len(names)]
    else:
        # Gray images may belong to a color set.
        settled = [header for header in found if header.count != 1 or header.dtype != 'uint8']
    settled = settled or found
    usual, _ = Counter(depth(header.dtype) for header in settled).most_common(1)[0]
    return next(header for header in settled if depth(header.dtype) == usual)


def class_folders(root: Path, files: Iterable[Path], parts: Collection[str] = PARTS) -> tuple[str, ...]:
    """Return the class names, sorted: the folders directly below the root.

    There are none if an image lies in the root, or the folders are parts of a data set.
    """
    below = [path.relative_to(root).parts for path in files]
    names = {inner[0] for inner in below}
    if any(len(inner) == 1 for inner in below) or all(name.lower() in parts for name in names):
        return ()
    return tuple(sorted(names))
