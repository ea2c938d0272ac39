"""What each block of a backbone knows: eigenvalues, position and class of patches, attention maps."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from explora_geo.checkpoints import atomic_path
from explora_geo.evaluation import BlockRow, analyse_blocks, class_attention
from explora_geo.models import ViT


def halves(vit: ViT, image: Tensor, label: Tensor, batch_size: int = 32) -> list[BlockRow]:
    """Analyse every block: every other image teaches the classifiers, the rest test them, on all patches.

    Args:
        vit: Plain backbone.
        image: Normalised images, shape (N, C, H, W).
        label: Their classes, shape (N,).
        batch_size: Images per forward pass.

    Returns:
        One result per block.

    Raises:
        ValueError: If there are fewer than four images, or one class only.
    """
    if len(image) < 4 or len(label.unique()) < 2:
        raise ValueError('an analysis needs at least four images of two classes')
    train, test = (
        [
            {'image': x, 'label': y}
            for x, y in zip(image[i::2].split(batch_size), label[i::2].split(batch_size), strict=True)
        ]
        for i in (0, 1)
    )
    return analyse_blocks(vit, train, test, patches=vit.patch_embed.num_patches)


def attention_maps(vit: ViT, image: Tensor, blocks: Sequence[int]) -> Tensor:
    """Attention of the class token to the patches, mean over heads.

    Args:
        vit: Plain backbone with one slot.
        image: Normalised images, shape (N, C, H, W).
        blocks: Blocks to show.

    Returns:
        Maps that sum to at most 1, shape (len(blocks), N, h, w).
    """
    size = vit.patch_embed.patch_size
    grid = tuple(side // size for side in image.shape[-2:])
    maps = [class_attention(vit, image, block)[:, :, 0].mean(1).unflatten(1, grid) for block in blocks]
    return torch.stack(maps).float().cpu()


def write_analysis(
    out: Path, models: Mapping[str, ViT], image: Tensor, label: Tensor, pictures: Tensor, shown: int = 4
) -> list[Path]:
    """Analyse models and write `analysis.json` and one figure of all of them.

    Args:
        out: Folder.
        models: Plain backbones by name.
        image: Normalised images, shape (N, C, H, W).
        label: Their classes, shape (N,).
        pictures: The same images in [0, 1], red, green and blue.
        shown: Images whose attention is shown.

    Returns:
        The files.
    """
    found = {name: halves(vit, image, label) for name, vit in models.items()}
    chosen = torch.arange(0, len(image), max(1, len(image) // shown))[:shown]
    maps = {name: attention_maps(vit, image[chosen], [-1])[0] for name, vit in models.items()}
    files = [out / 'analysis.json', out / 'analysis.png']
    with atomic_path(files[0]) as temporary:
        content = {name: [block._asdict() for block in blocks] for name, blocks in found.items()}
        temporary.write_text(json.dumps({'images': len(image), 'models': content}, indent=1))
    _draw(files[1], found, maps, pictures[chosen])
    return files


def _draw(
    path: Path, found: Mapping[str, Sequence[BlockRow]], maps: Mapping[str, Tensor], pictures: Tensor
) -> None:
    titles = {
        'eigenvalue_mean': 'mean eigenvalue of patch tokens',
        'eigenvalue_variance': 'variance of the eigenvalues',
        'position': 'place of a patch, accuracy',
        'label': 'class from one patch, accuracy',
    }
    rows = 1 + len(maps)
    figure = plt.figure(figsize=(14, 3.2 + 1.6 * rows), layout='constrained')
    panels: Any = figure.subfigures(2, 1, height_ratios=[3.2, 1.6 * rows])
    axes = panels[0].subplots(1, len(titles))
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        for name, blocks in found.items():
            values = [getattr(b, key) for b in blocks]
            axis.plot(range(1, len(values) + 1), values, marker='o', markersize=3, label=name)
        axis.set_title(title, fontsize=9, loc='left')
        axis.set_xlabel('block')
        axis.spines[['top', 'right']].set_visible(False)
        axis.grid(alpha=0.3)
    axes[1].set_yscale('log')
    axes[0].legend(frameon=False, fontsize=8)
    grid = panels[1].subplots(rows, len(pictures), squeeze=False)
    strips = {
        'image': pictures.permute(0, 2, 3, 1).clamp(0, 1).numpy(),
        **{k: v.numpy() for k, v in maps.items()},
    }
    for row, (name, images) in zip(grid, strips.items(), strict=True):
        for axis, picture in zip(row, images, strict=True):
            axis.imshow(picture, interpolation='nearest', cmap='viridis')
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(name, rotation=0, ha='right', va='center', fontsize=8)
    panels[1].suptitle("the class token's attention in the last block, mean over heads", fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format='png')
    plt.close(figure)
