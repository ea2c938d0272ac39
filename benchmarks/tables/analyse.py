"""What each block of a backbone knows: eigenvalues, position and class of patches, attention maps."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.utils.data import Subset

from explora_geo.checkpoints import atomic_path, load_backbone
from explora_geo.datasets import FolderDataset
from explora_geo.datasets.files import evenly_spaced
from explora_geo.evaluation import BlockRow, analyse_blocks, class_attention
from explora_geo.models import ViT

from . import records
from .records import by_row
from .work import MODEL

_TITLES = {
    'eigenvalue_mean': 'mean eigenvalue of patch tokens',
    'eigenvalue_variance': 'variance of the eigenvalues',
    'position': 'place of a patch, accuracy',
    'label': 'class from one patch, accuracy',
}


def find_models(names: Sequence[str], results: Path, store: Path, img_size: int | None) -> dict[str, ViT]:
    """Backbones for images of one size, by name.

    Args:
        names: `NAME=FILE`, or `TABLE:ROW` of a finished row, of which the first seed is taken.
        results: Results of rows.
        store: Folder of their stages.
        img_size: Image side, pixels; the first model's if None.

    Raises:
        FileNotFoundError: If a file or stage does not exist.
        ValueError: If a name is neither, or has no results.
    """
    known = records.read(results)
    found: dict[str, ViT] = {}
    for name in names:
        title, _, file = name.partition('=')
        if not file:
            table, _, row = name.partition(':')
            rows = by_row(known, table).get((row, 'run'))
            if not rows:
                raise ValueError(
                    f'{name!r} is neither NAME=FILE nor a row with results in {results} (TABLE:ROW)'
                )
            title, stages = rows[0]['name'], rows[0]['stages']
            file = str(store / stages.get('adapted', stages['source']) / MODEL)
            if not Path(file).is_file():
                raise FileNotFoundError(
                    f'no {file}: give the folder of stages (--store), or run the row again'
                )
        found[title] = vit = load_backbone(None, file, img_size=img_size)
        img_size = img_size or vit.patch_embed.grid_size[0] * vit.patch_embed.patch_size
    return found


def read_images(root: Path, count: int, vit: ViT) -> tuple[Tensor, Tensor, Tensor]:
    """Evenly spaced images of a folder of class folders, of the size and bands of a backbone.

    Returns:
        Images normalized by their own statistics, shape (N, C, H, W), classes, shape (N,), and pictures in
        [0, 1].
    """
    tokenizer = vit.patch_embed
    side = tokenizer.grid_size[0] * tokenizer.patch_size
    dataset = FolderDataset(root, bands=tokenizer.bands, labeled=True, strict=True, size=side)
    chosen = Subset(dataset, evenly_spaced(len(dataset), count))
    samples = [chosen[i] for i in range(len(chosen))]
    image, label = (torch.stack([s[k] for s in samples]) for k in ('image', 'label'))
    std, mean = torch.std_mean(image, dim=(0, 2, 3), keepdim=True)
    return (image - mean) / std, label, image / 255


def halves(vit: ViT, image: Tensor, label: Tensor, batch_size: int = 32) -> list[BlockRow]:
    """Analyse every block: every other image teaches the classifiers, the rest test them, on all patches.

    Args:
        vit: Plain backbone.
        image: Normalized images, shape (N, C, H, W).
        label: Their classes, shape (N,).
        batch_size: Images per forward pass.

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
    """Attention of the class token to the patches, mean over heads, of a backbone with one slot.

    Maps sum to at most 1; images of shape (N, C, H, W) -> (len(blocks), N, h, w).
    """
    size = vit.patch_embed.patch_size
    grid = tuple(side // size for side in image.shape[-2:])
    maps = [class_attention(vit, image, block)[:, :, 0].mean(1).unflatten(1, grid) for block in blocks]
    return torch.stack(maps).float().cpu()


def write_analysis(
    out: Path, models: Mapping[str, ViT], image: Tensor, label: Tensor, pictures: Tensor, shown: int = 4
) -> list[Path]:
    """Analyse models by name, and write `analysis.json` and one figure of all of them with some attention."""
    found = {name: halves(vit, image, label) for name, vit in models.items()}
    chosen = torch.arange(0, len(image), max(1, len(image) // shown))[:shown]
    strips = {'image': pictures[chosen].permute(0, 2, 3, 1).clamp(0, 1)}
    strips |= {name: attention_maps(vit, image[chosen], [-1])[0] for name, vit in models.items()}
    files = [out / 'analysis.json', out / 'analysis.png']
    with atomic_path(files[0]) as temporary:
        content = {name: [block._asdict() for block in blocks] for name, blocks in found.items()}
        temporary.write_text(json.dumps({'images': len(image), 'models': content}, indent=1))
    figure = plt.figure(figsize=(14, 3.2 + 1.6 * len(strips)), layout='constrained')
    panels: Any = figure.subfigures(2, 1, height_ratios=[3.2, 1.6 * len(strips)])
    axes = panels[0].subplots(1, len(_TITLES))
    for axis, (key, title) in zip(axes, _TITLES.items(), strict=True):
        for name, blocks in found.items():
            values = [getattr(b, key) for b in blocks]
            axis.plot(range(1, len(values) + 1), values, marker='o', markersize=3, label=name)
        axis.set_title(title, fontsize=9, loc='left')
        axis.set_xlabel('block')
        axis.spines[['top', 'right']].set_visible(False)
        axis.grid(alpha=0.3)
    axes[1].set_yscale('log')
    axes[0].legend(frameon=False, fontsize=8)
    grid = panels[1].subplots(len(strips), len(chosen), squeeze=False)
    for row, (name, images) in zip(grid, strips.items(), strict=True):
        for axis, picture in zip(row, images, strict=True):
            axis.imshow(picture, interpolation='nearest', cmap='viridis')
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(name, rotation=0, ha='right', va='center', fontsize=8)
    panels[1].suptitle("the class token's attention in the last block, mean over heads", fontsize=9)
    with atomic_path(files[1]) as temporary:
        figure.savefig(temporary, dpi=110, format='png')
    plt.close(figure)
    return files
