"""Plot samples of any dataset with their masks and predictions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor

from explora_geo.bands import RGB, select_bands, true_color_bands

#: Red, green and blue from 0 to 255.
Color = Sequence[int]

#: Maximum number of classes in a legend.
_SHOWN = 12


def palette(count: int, colors: Sequence[Color] = ()) -> NDArray[np.uint8]:
    """Return a color per class, (count, 3), 0 to 255: the given ones, else hues unlike those of neighbors."""
    # Steps of the golden ratio spread any number of hues; value and saturation separate close ones.
    steps = np.arange(count)
    hues = (steps * 0.618034 + 0.33) % 1
    hsv = np.stack([hues, 0.55 + 0.3 * (steps % 2), 0.9 - 0.25 * (steps % 3 == 2)], axis=1)
    table = np.round(255 * hsv_to_rgb(hsv)).astype(np.uint8)
    for i, color in enumerate(colors[:count]):
        table[i] = color
    return table


def paint(values: NDArray[Any], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Paint classes in their colors, (H, W) -> (H, W, 3); values without a color are white."""
    known = (values >= 0) & (values < len(table))
    picture = np.full((*values.shape, 3), 255, dtype=np.uint8)
    picture[known] = table[values[known].astype(int)]
    return picture


def plot_sample(
    sample: dict[str, Any],
    bands: Sequence[str],
    classes: Sequence[str] = (),
    colors: Sequence[Color] = (),
    show_titles: bool = True,
    suptitle: str | None = None,
) -> Figure:
    """Show an image in true color, or its first band in gray, beside its mask and prediction.

    Args:
        sample: Sample with ``image`` of shape (C, H, W), or (T, C, H, W) for a series, in any units;
            optionally ``label``, ``mask`` of shape (H, W) with classes or numbers, and a ``prediction`` of
            either.
        bands: Names of the bands of the image.
        classes: Names of the classes.
        colors: Colors of the mask classes; a legend lists the classes that occur.
        show_titles: Whether to show titles above the panels, such as class names.
        suptitle: Title of the whole figure.
    """
    frames = sample['image'] if sample['image'].ndim == 4 else sample['image'][None]
    found = {key: sample[key].detach().cpu() for key in ('label', 'mask', 'prediction') if key in sample}
    masks = {key.capitalize(): value for key, value in found.items() if value.ndim == 2}
    names = {key: _name(int(v), classes) for key, v in found.items() if v.ndim < 2 and v.numel() == 1}
    count = len(frames) + len(masks)
    figure, axes = plt.subplots(1, count, figsize=(4 * count, 4), squeeze=False, layout='constrained')
    for axis, frame in zip(axes[0], frames, strict=False):
        pixels = _pixels(frame, bands)
        axis.imshow(_stretch(pixels, np.percentile(pixels, (2, 98))), cmap='gray')
    if any(values.is_floating_point() for values in masks.values()):
        pictures, present, table = {k: v.numpy() for k, v in masks.items()}, [], palette(0)
    else:
        # 255 and above mark pixels without a class.
        occurring = sorted({int(c) for v in masks.values() for c in v.unique() if 0 <= c < 255})
        table = palette(max([len(classes) - 1, *occurring]) + 1, colors)
        pictures, present = {k: paint(v.numpy(), table) for k, v in masks.items()}, occurring[:_SHOWN]
    for axis, picture in zip(axes[0, len(frames) :], pictures.values(), strict=True):
        axis.imshow(picture, interpolation='nearest')
    first = '\n'.join(f'{key.capitalize()}: {name}' for key, name in names.items())
    for axis, title in zip(axes[0], [first or ('Image' if masks else ''), *masks], strict=False):
        axis.set_title(title if show_titles else '')
    for axis in axes[0]:
        axis.axis('off')
    if present:
        entries = [Patch(color=table[c] / 255, label=_name(c, classes)) for c in present]
        figure.legend(handles=entries, loc='outside lower center', ncols=min(len(entries), 4), frameon=False)
    if suptitle is not None:
        figure.suptitle(suptitle)
    return figure


def plot_rows(
    rows: Mapping[str, Tensor],
    bands: Sequence[str] = RGB,
    titles: Sequence[str] = (),
    shown: Sequence[str] | None = None,
) -> Figure:
    """Show versions of the same images in rows, such as input, masked input and reconstruction.

    Each image is stretched between the 2nd and 98th percentile of its first version, so that versions
    can be compared.

    Args:
        rows: Images by row name, each of shape (N, C, H, W), in the same units.
        bands: Names of the bands of the images.
        titles: Titles of the columns.
        shown: Three bands to show as red, green and blue, or one; true color if None.

    Raises:
        ValueError: If a band to show is missing.
    """
    first = next(iter(rows.values()))
    limits = [np.percentile(_pixels(image, bands, shown), (2, 98)) for image in first]
    size = (1.3 * len(first) + 1.2, 1.3 * len(rows) + 0.3)
    figure, axes = plt.subplots(len(rows), len(first), figsize=size, squeeze=False, layout='constrained')
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image, limit in zip(line, images, limits, strict=True):
            picture = _stretch(_pixels(image, bands, shown), limit)
            axis.imshow(picture, cmap='gray', interpolation='nearest', vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(name, rotation=0, ha='right', va='center')
    for axis, title in zip(axes[0], titles, strict=False):
        axis.set_title(title, fontsize=9)
    return figure


def _name(label: int, classes: Sequence[str]) -> str:
    return classes[label] if 0 <= label < len(classes) else str(label)


def _pixels(image: Tensor, bands: Sequence[str], shown: Sequence[str] | None = None) -> NDArray[np.float32]:
    """Select the bands of an image (C, H, W) to show; if None, true color or else the first band."""
    chosen = true_color_bands(bands) if shown is None else select_bands(shown, bands)
    return image[chosen].detach().cpu().float().numpy()


def _stretch(pixels: NDArray[np.float32], limits: NDArray[Any]) -> NDArray[np.float32]:
    """Stretch bands (C, H, W) between two values, to (H, W, 3) or (H, W)."""
    low, high = limits
    stretched: NDArray[np.float32] = np.clip((pixels - low) / max(high - low, 1e-6), 0, 1)
    return stretched[0] if len(stretched) == 1 else stretched.transpose(1, 2, 0)
