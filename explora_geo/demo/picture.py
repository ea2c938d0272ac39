"""The demo's one picture."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor

from explora_geo.checkpoints import atomic_path
from explora_geo.models.vit import ViT


@torch.no_grad()
def pca_colours(vit: ViT, images: Tensor, shown: int) -> NDArray[np.float32]:
    """First three principal components of the last block's patch tokens as colours.

    Args:
        vit: Backbone.
        images: Normalised images, shape (N, C, H, W); all of them define the components.
        shown: How many of the first images are coloured.

    Returns:
        Colours in [0, 1], shape (shown, h, w, 3).
    """
    patches = vit.eval()(images).patches[:, 0].float().cpu()
    height, width = (side // vit.patch_embed.patch_size for side in images.shape[-2:])
    flat = patches.flatten(0, 1).numpy()
    scores = PCA(3, random_state=0).fit_transform(flat)
    low, high = np.percentile(scores, (2, 98), axis=0)
    colours = np.clip((scores - low) / (high - low), 0, 1)
    return colours.reshape(len(patches), height, width, 3)[:shown].astype(np.float32)


def _row(axes: NDArray[Any], images: NDArray[Any], title: str) -> None:
    for axis, image in zip(axes, images, strict=True):
        axis.imshow(image, interpolation='nearest')
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0].set_ylabel(title, rotation=0, ha='right', va='center', fontsize=10)


def _bars(axis: Axes, rows: list[dict[str, Any]]) -> None:
    """Accuracies before and after with their intervals."""
    positions = np.arange(len(rows))
    for offset, key, colour in ((-0.19, 'before', '#9aa5b1'), (0.19, 'after', '#1f7a8c')):
        heights = [100 * r[key]['mean'] for r in rows]
        errors = [100 * r[key]['half'] for r in rows]
        label = {'before': 'source', 'after': 'adapted'}[key]
        bars = axis.bar(positions + offset, heights, 0.36, yerr=errors, color=colour, capsize=4, label=label)
        axis.bar_label(bars, fmt='%.1f', label_type='center', color='white', fontsize=10)
    axis.set_xticks(positions, [r['measurement'].replace(', ', '\n') for r in rows])
    axis.set_ylabel('test accuracy, %')
    axis.set_ylim(0, 100)
    axis.spines[['top', 'right']].set_visible(False)
    axis.legend(frameon=False, ncols=2, loc='upper right')
    axis.set_title('Held-out tiles, mean and 95 % interval over label seeds', fontsize=10, loc='left')


def draw(
    path: Path,
    image: Tensor,
    pictures: dict[str, Tensor],
    colours: dict[str, NDArray[np.float32]],
    rows: list[dict[str, Any]],
    title: str,
) -> None:
    """Draw input, masked input, reconstruction, features before and after, and accuracies.

    Args:
        path: PNG file to write.
        image: RGB input in [0, 1], shape (N, 3, H, W).
        pictures: Further images by title, in [0, 1], shape (N, 3, H, W).
        colours: Feature colours by title, each of shape (N, h, w, 3).
        rows: Output of `compare`.
        title: Title of the picture.
    """
    strips = {'input': image, **pictures}
    count = len(strips) + len(colours)
    figure = plt.figure(figsize=(11, 1.25 * count + 3.6), layout='constrained')
    panels: Any = figure.subfigures(2, 1, height_ratios=[1.25 * count, 3.3])
    top, bottom = panels
    axes = top.subplots(count, len(image), squeeze=False)
    for row, (name, images) in zip(axes, strips.items(), strict=False):
        _row(row, images.permute(0, 2, 3, 1).clamp(0, 1).cpu().numpy(), name)
    for row, (name, found) in zip(axes[len(strips) :], colours.items(), strict=True):
        _row(row, found, name)
    _bars(bottom.subplots(), rows)
    figure.suptitle(title, fontsize=12)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format='png')
    plt.close(figure)
