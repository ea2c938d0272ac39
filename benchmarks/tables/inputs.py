"""Models and images of an analysis."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Subset

from explora_geo.checkpoints import load_backbone
from explora_geo.datasets import FolderDataset
from explora_geo.datasets.files import evenly_spaced
from explora_geo.models import ViT

from . import records
from .records import by_row
from .source import MODEL


def find_models(names: Sequence[str], results: Path, store: Path, img_size: int | None) -> dict[str, ViT]:
    """Backbones by name.

    Args:
        names: `NAME=FILE`, or `TABLE:ROW` of a finished row, of which the first seed is taken.
        results: Results of rows.
        store: Folder of their stages.
        img_size: Image side, pixels; the first model's if None.

    Returns:
        Backbones for images of one size.

    Raises:
        FileNotFoundError: If a file or stage does not exist.
        ValueError: If a name is neither, or has no results.
    """
    known = records.read(results)
    found: dict[str, ViT] = {}
    for name in names:
        title, _, file = name.partition('=')
        if not file:
            title, file = _stage_of(name, known, results, store)
        vit = load_backbone(None, file, img_size=img_size)
        tokenizer = vit.patch_embed
        img_size = img_size or tokenizer.grid_size[0] * tokenizer.patch_size
        found[title] = vit
    return found


def _stage_of(name: str, known: Sequence[records.Record], results: Path, store: Path) -> tuple[str, str]:
    table, _, row = name.partition(':')
    rows = by_row(known, table).get((row, 'run'))
    if not rows:
        raise ValueError(f'{name!r} is neither NAME=FILE nor a row with results in {results} (TABLE:ROW)')
    stages = rows[0]['stages']
    file = store / stages.get('adapted', stages['source']) / MODEL
    if not file.is_file():
        raise FileNotFoundError(f'no {file}: give the folder of stages (--store), or run the row again')
    return rows[0]['name'], str(file)


def read_images(root: Path, count: int, vit: ViT) -> tuple[Tensor, Tensor, Tensor]:
    """Evenly spaced images for a backbone, normalised by their own statistics.

    Args:
        root: Folder of class folders.
        count: Images.
        vit: The backbone, which says their size.

    Returns:
        Normalised images, shape (N, C, H, W), classes, shape (N,), and pictures in [0, 1].
    """
    tokenizer = vit.patch_embed
    side = tokenizer.grid_size[0] * tokenizer.patch_size
    dataset = FolderDataset(root, bands=tokenizer.bands, labeled=True, strict=True, size=side)
    chosen = Subset(dataset, evenly_spaced(len(dataset), count))
    samples = [chosen[i] for i in range(len(chosen))]
    image, label = (torch.stack([s[k] for s in samples]) for k in ('image', 'label'))
    std, mean = torch.std_mean(image, dim=(0, 2, 3), keepdim=True)
    return (image - mean) / std, label, image / 255
