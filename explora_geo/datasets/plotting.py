"""Plots of samples of any dataset."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from ..bands import RGB, select_bands, true_color_bands


def plot_sample(
    sample: dict[str, Any],
    bands: Sequence[str],
    classes: Sequence[str] = (),
    show_titles: bool = True,
    suptitle: str | None = None,
) -> Figure:
    """Show an image in true color, or its first band in gray if it has none.

    Args:
        sample: Sample with ``image`` of shape (C, H, W), or (T, C, H, W) for a series, in any units, and
            optionally ``label`` and ``prediction``.
        bands: Names of the bands of the image.
        classes: Names of the classes.
        show_titles: Whether to show class names above the image.
        suptitle: Title of the whole figure.

    Returns:
        The figure.
    """
    frames = sample['image'] if sample['image'].ndim == 4 else sample['image'][None]
    fig, axes = plt.subplots(1, len(frames), figsize=(4 * len(frames), 4), squeeze=False)
    for ax, frame in zip(axes[0], frames, strict=True):
        ax.imshow(_to_rgb(frame, bands), cmap='gray')
        ax.axis('off')
    if show_titles:
        titles = [
            f'{key.capitalize()}: {_class_name(int(sample[key]), classes)}'
            for key in ('label', 'prediction')
            if key in sample
        ]
        axes[0, 0].set_title('\n'.join(titles))
    if suptitle is not None:
        fig.suptitle(suptitle)
    return fig


def plot_rows(
    rows: Mapping[str, Tensor],
    bands: Sequence[str] = RGB,
    titles: Sequence[str] = (),
    shown: Sequence[str] | None = None,
) -> Figure:
    """Show versions of the same images below one another, such as input, masked input and reconstruction.

    Each image is stretched between the 2nd and 98th percentile of its first version, so that versions
    can be compared.

    Args:
        rows: Images by name of the row, each of shape (N, C, H, W), in equal units.
        bands: Names of the bands of the images.
        titles: Titles of the columns.
        shown: Three bands to show as red, green and blue, or one; true color if None.

    Returns:
        The figure.

    Raises:
        ValueError: If a band to show is not there.
    """
    chosen = None if shown is None else select_bands(shown, bands)
    first = next(iter(rows.values()))
    limits = [np.percentile(_pixels(image, bands, chosen), (2, 98)) for image in first]
    size = (1.3 * len(first) + 1.2, 1.3 * len(rows) + 0.3)
    figure, axes = plt.subplots(len(rows), len(first), figsize=size, squeeze=False, layout='constrained')
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image, (low, high) in zip(line, images, limits, strict=True):
            stretched = np.clip((_pixels(image, bands, chosen) - low) / max(high - low, 1e-6), 0, 1)
            picture = stretched[0] if len(stretched) == 1 else stretched.transpose(1, 2, 0)
            axis.imshow(picture, cmap='gray', interpolation='nearest', vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(name, rotation=0, ha='right', va='center')
    for axis, title in zip(axes[0], titles, strict=False):
        axis.set_title(title, fontsize=9)
    return figure


def _class_name(label: int, classes: Sequence[str]) -> str:
    return classes[label] if 0 <= label < len(classes) else str(label)


def _to_rgb(image: Tensor, bands: Sequence[str]) -> NDArray[np.float32]:
    """Stretch an image (C, H, W) between its 2nd and 98th percentile to (H, W, 3) or (H, W)."""
    pixels = _pixels(image, bands)
    low, high = np.percentile(pixels, (2, 98))
    stretched: NDArray[np.float32] = np.clip((pixels - low) / max(high - low, 1e-6), 0, 1)
    # (C,H,W) -> (H,W,C), or (H,W) for one band
    return stretched[0] if len(stretched) == 1 else stretched.transpose(1, 2, 0)


def _pixels(image: Tensor, bands: Sequence[str], chosen: Sequence[int] | None = None) -> NDArray[np.float32]:
    """The bands of an image (C, H, W) that are shown; true color, or else the first, if None."""
    shown = true_color_bands(bands) if chosen is None else list(chosen)
    pixels: NDArray[np.float32] = image[shown].detach().cpu().to(torch.float32).numpy()
    return pixels
