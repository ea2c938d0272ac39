"""SpaceNet 1: buildings of Rio de Janeiro, through TorchGeo's class."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import rasterio
import torch
from matplotlib.figure import Figure
from torchgeo.datasets import DatasetNotFoundError, NonGeoDataset, SpaceNet1

from ..bands import RGB, select_bands
from .files import PathLike, evenly_spaced
from .folder import PROBES
from .images import BadTileError, depth, read_header, readable, resize, skip
from .masks import resize_mask
from .plot_masks import plot_masks

#: Bands of the images by TorchGeo's name of them.
IMAGE_BANDS = {
    '3band': RGB,
    '8band': ('coastal', 'blue', 'green', 'yellow', 'red', 'red_edge', 'nir1', 'nir2'),
}


class SpaceNet1Dataset(NonGeoDataset):
    """SpaceNet 1 as samples of one size, with the black regions outside the scene marked.

    TorchGeo reads images and rasterises footprints; the published test images have no labels, so the data
    module takes parts out of the training images.
    """

    classes = ('other', 'building')
    colours = ((235, 230, 220), (190, 60, 40))

    def __init__(
        self,
        root: PathLike,
        split: Literal['train', 'test'] = 'train',
        image: Literal['3band', '8band'] = '3band',
        bands: Sequence[str] | None = None,
        size: int | None = None,
        ignore_black: int | None = 255,
        strict: bool = False,
        transforms: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        """Initialize a new SpaceNet1Dataset instance.

        Args:
            root: Folder that holds ``SN1_buildings``.
            split: ``train`` with masks, or ``test`` without.
            image: Pan-sharpened colours or eight bands.
            bands: Names of the bands to return, in any order; all bands if None.
            size: Side of the returned images: the shorter side is resized and the centre cropped.
            ignore_black: Value of the mask where every band is 0; None leaves these pixels ``other``.
            strict: Whether to raise on an image that cannot be used instead of skipping it.
            transforms: Function applied to each sample.

        Raises:
            FileNotFoundError: If there is no image.
            ValueError: If a band does not exist.
        """
        if image not in IMAGE_BANDS:
            raise ValueError(f'image must be one of {", ".join(IMAGE_BANDS)}, got {image!r}.')
        self._positions = select_bands(bands, IMAGE_BANDS[image])
        self.bands = tuple(IMAGE_BANDS[image][i] for i in self._positions)
        self.size, self.ignore_black, self.transforms = size, ignore_black, transforms
        try:
            self.source = SpaceNet1(str(root), split, image=image)
        except DatasetNotFoundError as error:
            raise FileNotFoundError(
                f'There are no SpaceNet 1 images in {root}/SN1_buildings/{split}/{image}: check the path.'
            ) from error
        self.files = [str(path) for path in self.source.images]
        self.root, self.strict = root, strict
        self._depth = self._usual_depth()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one sample.

        Args:
            index: Position of the image.

        Returns:
            ``image``, float32, shape (C, H, W), and, but for the test part, ``mask``, int64, shape (H, W); or
            ``skipped``, which file and why.

        Raises:
            ValueError: If the image cannot be used and *strict* is set.
        """
        try:
            found = self._read(index)
        except BadTileError as error:
            return skip(f'{self.files[index]}: {error}', self.strict, 'repair the file')
        pixels = found['image'].numpy()
        black = (pixels == 0).all(0)
        if self.size is not None:
            pixels = resize(pixels, self.size)
        sample: dict[str, Any] = {'image': torch.from_numpy(pixels[self._positions].copy())}
        if 'mask' in found:
            mask = found['mask'].long().clamp(max=1)
            if self.ignore_black is not None:
                mask[torch.from_numpy(black)] = self.ignore_black
            sample['mask'] = resize_mask(mask, self.size)
        return sample if self.transforms is None else self.transforms(sample)

    @property
    def names(self) -> list[str]:
        """Name of each file without its folder."""
        return [Path(file).name for file in self.files]

    def blocks(self, side: float) -> list[str]:
        """Which block of a grid on the ground holds the centre of each image.

        Args:
            side: Side of a block in units of the files' coordinates, degrees.

        Returns:
            Column and row of the block, as text; the path of an image that cannot be read.
        """
        found = []
        for file in self.files:
            try:
                with readable(file), rasterio.open(file) as source:
                    x, y = source.lnglat()
            except BadTileError:
                found.append(file)
            else:
                found.append(f'{math.floor(x / side)}, {math.floor(y / side)}')
        return found

    def _usual_depth(self) -> str | None:
        """Range of the pixels of most images, as far as a few show it."""
        found: Counter[str] = Counter()
        for index in evenly_spaced(len(self.files), PROBES):
            with suppress(BadTileError):
                found[depth(read_header(Path(self.files[index])).dtype)] += 1
        return found.most_common(1)[0][0] if found else None

    def _read(self, index: int) -> dict[str, Any]:
        """TorchGeo's sample, of an image that is what it should be."""
        header, names = read_header(Path(self.files[index])), IMAGE_BANDS[self.source.image]
        if header.count != len(names):
            raise BadTileError(f'it has {header.count} bands instead of the {len(names)} bands {names}')
        if depth(header.dtype) != self._depth:
            raise BadTileError(f'its pixels are {header.dtype}, those of the others {self._depth}')
        with readable(
            self.files[index], RuntimeError
        ):  # what geopandas' reader raises, by a class of its own
            found: dict[str, Any] = self.source[index]
        return found

    def plot(self, sample: dict[str, Any], show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Plot a sample with its mask.

        Args:
            sample: A sample returned by :meth:`__getitem__`, optionally with a ``prediction``.
            show_titles: Whether to show titles above the panels.
            suptitle: Title of the whole figure.

        Returns:
            The figure.
        """
        return plot_masks(sample, self.bands, self.classes, self.colours, show_titles, suptitle)
