"""One way to show a sample of any dataset."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from .bands import canonical

#: Bands shown as red, green and blue where a file does not call them so.
TRUE_COLOUR = (('red', 'green', 'blue'), ('b04', 'b03', 'b02'))


def plot_sample(
    sample: dict[str, Any],
    bands: Sequence[str],
    classes: Sequence[str] = (),
    show_titles: bool = True,
    suptitle: str | None = None,
) -> Figure:
    """Show an image in true colour, or its first band in grey where that is not possible.

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


def _class_name(label: int, classes: Sequence[str]) -> str:
    return classes[label] if 0 <= label < len(classes) else str(label)


def _to_rgb(image: Tensor, bands: Sequence[str]) -> NDArray[np.float32]:
    """Stretch an image (C, H, W) between its 2nd and 98th percentile to (H, W, 3) or (H, W)."""
    names = [canonical(band) for band in bands]
    chosen = [0]
    for triple in TRUE_COLOUR:
        if set(triple) <= set(names):
            chosen = [names.index(band) for band in triple]
            break
    pixels = image[chosen].detach().cpu().to(torch.float32).numpy()
    low, high = np.percentile(pixels, (2, 98))
    stretched = np.clip((pixels - low) / max(high - low, 1e-6), 0, 1)
    # (C,H,W) -> (H,W,C), or (H,W) for one band
    return stretched[0] if len(chosen) == 1 else stretched.transpose(1, 2, 0)
