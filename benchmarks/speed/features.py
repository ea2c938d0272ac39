"""How close the extraction of features for probes comes to the forward passes that it consists of."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from explora_geo.datamodules import FolderDataModule
from explora_geo.evaluation import cached_features
from explora_geo.models import create_vit

from .clock import Times, alternate
from .records import add_row, begin, section, table

BLOCKS = 4
TARGET = 0.9
FORWARD = 'forward passes alone'


def compare_features(
    out: Path, images: Path, model: str, count: int, repeats: int, workers: int = 0, batch: int = 64
) -> Path:
    """Extract features of real tiles as a probe does, and run the same batches from memory, in turns.

    Args:
        out: Folder; rows are added to `speed_features.jsonl`, and `speed_features.md` shows all of them.
        images: Folder of class folders of images.
        model: Backbone, of random numbers.
        count: Images, evenly spaced.
        repeats: Rounds that count.
        workers: Processes that read images.
        batch: Images per forward pass.

    Returns:
        The Markdown file.

    Raises:
        ValueError: If there are fewer images.
    """
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    vit = create_vit(model).to(device).eval()
    tokenizer, blocks = vit.patch_embed, min(BLOCKS, vit.depth)
    side = tokenizer.grid_size[0] * tokenizer.patch_size
    datamodule = FolderDataModule(images, image_size=side, batch_size=batch)
    datamodule.setup('fit')
    whole: Any = datamodule.train_dataset
    if len(whole) < count:
        raise ValueError(f'{images} holds {len(whole)} images, {count} are asked for')
    dataset = Subset(whole, [i * len(whole) // count for i in range(count)])
    options: dict[str, Any] = {'batch_size': batch, 'num_workers': workers, 'collate': datamodule.collate_fn}
    batches = [
        datamodule.aug({'image': b['image'].to(device)})['image']
        for b in DataLoader(dataset, batch, collate_fn=datamodule.collate_fn)
    ]

    def extract(folder: str | None = None) -> None:
        cached_features(folder, vit, dataset, transform=datamodule.aug, blocks=blocks, **options)

    def keep() -> None:
        with tempfile.TemporaryDirectory() as folder:
            extract(folder)

    @torch.no_grad()
    def forward() -> None:
        for image in batches:
            vit.intermediate(image, range(-blocks, 0))

    times = alternate({FORWARD: forward, 'extraction': extract, 'extraction into the cache': keep}, repeats)
    row = {
        **begin('features', device, model=model, images=count, batch=batch, workers=workers),
        'repeats': repeats,
        'times': {n: t._asdict() for n, t in times.items()},
    }
    return add_row(out / 'speed_features.jsonl', row, markdown)


def markdown(rows: list[dict[str, Any]]) -> str:
    """All measurements as tables.

    Args:
        rows: Results of `compare_features`.

    Returns:
        Markdown.
    """
    lines = [
        '# Extraction of features',
        '',
        'Made by `explora-bench features`: what a probe does with real tiles (reading, normalising, forward '
        'passes, pooling, half precision), and the forward passes alone on the same batches in memory, in '
        f'turns; median of the rounds with the fastest and slowest. The target is {TARGET:.0%} of their '
        'speed; the cache also hashes weights and images and reads the first batch twice.',
    ]
    for row in rows:
        s, first = row['setting'], row['times'][FORWARD]['median']
        cells = [
            (
                name,
                Times(**values).text(),
                f'{s["images"] / values["median"]:,.1f}',
                f'{first / values["median"]:.0%}',
            )
            for name, values in row['times'].items()
        ]
        title = f'{s["model"]}, {s["images"]} images, batch {s["batch"]}, {s["workers"]} workers'
        lines += [
            *section(title, row, f', float32, {row["repeats"]} rounds'),
            *table(('what', 'seconds', 'images/s', 'of the forward passes'), cells),
        ]
    return '\n'.join([*lines, ''])
