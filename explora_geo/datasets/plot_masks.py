"""Plots of images beside their masks and predictions."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor

from .plotting import _to_rgb

#: Red, green and blue from 0 to 255.
Color = Sequence[int]

#: Most classes a legend names.
_SHOWN = 12


def palette(count: int, colors: Sequence[Color] = ()) -> NDArray[np.uint8]:
    """A color per class: the given ones, else evenly spread hues that neighbors do not share.

    Args:
        count: Number of classes.
        colors: Colors of the first classes.

    Returns:
        Red, green and blue from 0 to 255, shape (count, 3).
    """
    # Steps of the golden ratio spread any number of hues; value and saturation tell close ones apart.
    steps = np.arange(count)
    hues = (steps * 0.618034 + 0.33) % 1
    hsv = np.stack([hues, 0.55 + 0.3 * (steps % 2), 0.9 - 0.25 * (steps % 3 == 2)], axis=1)
    from matplotlib.colors import hsv_to_rgb

    table = np.round(255 * hsv_to_rgb(hsv)).astype(np.uint8)
    for i, color in enumerate(colors[:count]):
        table[i] = color
    return table


def paint(values: NDArray[Any], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Classes as colors, (H, W) -> (H, W, 3); values without a color are white."""
    known = (values >= 0) & (values < len(table))
    picture = np.full((*values.shape, 3), 255, dtype=np.uint8)
    picture[known] = table[values[known].astype(int)]
    return picture


def plot_masks(
    sample: dict[str, Any],
    bands: Sequence[str],
    classes: Sequence[str] = (),
    colors: Sequence[Color] = (),
    show_titles: bool = True,
    suptitle: str | None = None,
) -> Figure:
    """Show an image, its mask and a prediction, with a legend of the classes that occur.

    Args:
        sample: Sample with ``image`` of shape (C, H, W), and optionally ``mask`` and ``prediction`` of
            shape (H, W); classes, or numbers.
        bands: Names of the bands of the image.
        classes: Names of the classes.
        colors: Colors of the classes.
        show_titles: Whether to show titles above the panels.
        suptitle: Title of the whole figure.

    Returns:
        The figure.
    """
    panels = {k: sample[k].detach().cpu() for k in ('mask', 'prediction') if k in sample}
    figure, axes = plt.subplots(
        1, 1 + len(panels), figsize=(4 * (1 + len(panels)), 4), squeeze=False, layout='constrained'
    )
    axes[0, 0].imshow(_to_rgb(sample['image'], bands), cmap='gray')
    numbers = any(v.is_floating_point() for v in panels.values())
    highest = max([len(classes) - 1, *(_highest(v) for v in panels.values())])
    table = palette(highest + 1, colors)
    for axis, values in zip(axes[0, 1:], panels.values(), strict=True):
        if numbers:
            axis.imshow(values.numpy(), cmap='viridis')
        else:
            axis.imshow(paint(values.numpy(), table), interpolation='nearest')
    for axis, title in zip(axes[0], ['Image', *(k.capitalize() for k in panels)], strict=True):
        axis.axis('off')
        if show_titles:
            axis.set_title(title)
    present = sorted({int(c) for v in panels.values() for c in v.unique()}) if not numbers else []
    present = [c for c in present if c <= highest and c >= 0][:_SHOWN]
    if present:
        entries = [
            Patch(color=table[c] / 255, label=classes[c] if c < len(classes) else str(c)) for c in present
        ]
        figure.legend(handles=entries, loc='outside lower center', ncols=min(len(entries), 4), frameon=False)
    if suptitle is not None:
        figure.suptitle(suptitle)
    return figure


def _highest(values: Tensor) -> int:
    """The highest class of a mask; 255 and above mark pixels without one."""
    counted = values[values < 255]
    return int(counted.max()) if counted.numel() else 0
