"""What each block of a backbone knows: eigenvalues, position and class of its patch tokens."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch.utils.data import DataLoader, Subset

from explora_geo.checkpoints import atomic_path, load_backbone
from explora_geo.datasets import FolderDataset
from explora_geo.datasets.files import evenly_spaced
from explora_geo.evaluation import BlockRow, analyse_blocks
from explora_geo.models import ViT

from .records import by_row, read
from .work import MODEL

_TITLES = {
    'eigenvalue_mean': 'mean eigenvalue of patch tokens',
    'eigenvalue_variance': 'variance of the eigenvalues',
    'position': 'place of a patch, accuracy',
    'label': 'class from one patch, accuracy',
}


def find_models(names: Sequence[str], results: Path, store: Path, img_size: int | None) -> dict[str, ViT]:
    """Backbones for images of one size, by name: `NAME=FILE`, or `TABLE:ROW` of the results, its first seed.

    Without a size it is that of the first.
    """
    known = read(results)
    found: dict[str, ViT] = {}
    for name in names:
        title, _, file = name.partition('=')
        if not file:
            table, _, row = name.partition(':')
            rows = by_row(known, table).get(row)
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


def analyse(models: Mapping[str, ViT], folder: Path, count: int) -> dict[str, list[BlockRow]]:
    """Analyse models on evenly spaced images of class folders, normalized by their own statistics.

    Every other image teaches the classifiers, the rest test them.
    """
    tokenizer = next(iter(models.values())).patch_embed
    side = tokenizer.grid_size[0] * tokenizer.patch_size
    dataset = FolderDataset(folder, bands=tokenizer.bands, labeled=True, strict=True, size=side)
    chosen = Subset(dataset, evenly_spaced(len(dataset), count))
    samples = next(iter(DataLoader(chosen, batch_size=len(chosen))))
    std, mean = torch.std_mean(samples['image'], dim=(0, 2, 3), keepdim=True)
    image, label = (samples['image'] - mean) / std, samples['label']
    if len(image) < 4 or len(label.unique()) < 2:
        raise ValueError('an analysis needs at least four images of two classes')
    train, test = ([{'image': image[i::2], 'label': label[i::2]}] for i in (0, 1))
    return {k: analyse_blocks(vit, train, test, patches=tokenizer.num_patches) for k, vit in models.items()}


def write_analysis(out: Path, found: Mapping[str, Sequence[BlockRow]]) -> list[Path]:
    """Write `analysis.json` and `analysis.png`, models side by side."""
    files = [out / 'analysis.json', out / 'analysis.png']
    with atomic_path(files[0]) as temporary:
        temporary.write_text(json.dumps({k: [b._asdict() for b in v] for k, v in found.items()}, indent=1))
    figure, axes = plt.subplots(1, len(_TITLES), figsize=(14, 3.2), layout='constrained')
    for axis, (key, title) in zip(axes, _TITLES.items(), strict=True):
        for name, blocks in found.items():
            values = [getattr(b, key) for b in blocks]
            axis.plot(range(1, len(values) + 1), values, marker='o', markersize=3, label=name)
        axis.set_title(title, fontsize=9, loc='left')
        axis.set_xlabel('block')
        axis.grid(alpha=0.3)
    axes[1].set_yscale('log')
    axes[0].legend(frameon=False, fontsize=8)
    with atomic_path(files[1]) as temporary:
        figure.savefig(temporary, dpi=110, format='png')
    plt.close(figure)
    return files
