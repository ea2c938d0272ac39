"""A small picture of a scene and its map."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import rasterio
from matplotlib.patches import Patch
from numpy.typing import NDArray

from explora_geo.bands import RGB, canonical
from explora_geo.checkpoints import atomic_path
from explora_geo.datasets.plot_masks import paint
from explora_geo.maps.scene import Scene

#: Longer side of a panel, pixels.
SIDE = 900


def draw(
    path: Path,
    scene: Scene,
    raster: Path,
    classes: Sequence[str] = (),
    colours: Sequence[Sequence[int]] = (),
    title: str = '',
) -> None:
    """Draw a scene beside its map, with a legend of the classes by share.

    Args:
        path: PNG file to write.
        scene: The scene.
        raster: Its map.
        classes: Names of the classes; none for numbers.
        colours: Their colours.
        title: Title of the picture.
    """
    figure, axes = plt.subplots(1, 2, figsize=(12, 6.4), layout='constrained')
    axes[0].imshow(_true_colour(scene), interpolation='nearest', cmap='gray')
    with rasterio.open(raster) as source:
        values = source.read(1, out_shape=_shape(source.height, source.width))
    if classes:
        table = np.asarray(colours, dtype=np.uint8)
        axes[1].imshow(paint(values, table), interpolation='nearest')
        counts = np.bincount(values[values < len(classes)].ravel(), minlength=len(classes))
        present = [i for i in np.argsort(-counts) if counts[i]][:12]
        shares = counts / max(counts.sum(), 1)
        entries = [Patch(color=table[i] / 255, label=f'{classes[i]} {shares[i]:.0%}') for i in present]
        figure.legend(
            handles=entries, loc='outside lower center', ncols=min(6, max(len(entries), 1)), frameon=False
        )
    else:
        shown = axes[1].imshow(np.ma.masked_invalid(values), cmap='viridis')
        figure.colorbar(shown, ax=axes[1], shrink=0.7)
    for axis in axes:
        axis.axis('off')
    figure.suptitle(title, fontsize=11)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format='png')
    plt.close(figure)


def _shape(height: int, width: int) -> tuple[int, int]:
    scale = min(1.0, SIDE / max(height, width))
    return max(round(height * scale), 1), max(round(width * scale), 1)


def _true_colour(scene: Scene) -> NDArray[Any]:
    """Red, green and blue stretched between percentiles, or the first band in grey; nodata is white."""
    names = [canonical(b) for b in scene.bands]
    chosen = [names.index(b) for b in RGB] if set(RGB) <= set(names) else [0]
    with scene.open() as source:
        indices = [scene.indices[i] for i in chosen]
        shape = _shape(scene.height, scene.width)
        pixels = source.read(indices, out_shape=(len(indices), *shape))
        valid = np.isfinite(pixels).all(0) & scene.unmasked(source, out_shape=shape)
        if source.nodata is not None:
            valid &= ~(pixels == source.nodata).all(0)
    data = pixels.astype(np.float32)
    low, high = np.percentile(data[:, valid], (2, 98)) if valid.any() else (0, 1)
    picture = np.clip((data - low) / max(high - low, 1e-6), 0, 1)
    picture[:, ~valid] = 1
    return picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0)
