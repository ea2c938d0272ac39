"""Commands that measure what else a user waits for: `features` and `loading`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .steps import OUT, REPEATS, RESULTS

TILES = Path('tests/data/eurosat_rgb')


def features(
    images: Annotated[Path, typer.Argument(help='Folder of class folders.')] = TILES / 'test',
    model: Annotated[str, typer.Option(help='Backbone.')] = 'vit_tiny_patch8_64',
    count: Annotated[int, typer.Option(help='Images, evenly spaced.')] = 512,
    workers: Annotated[int, typer.Option(help='Processes that read images.')] = 0,
    batch: Annotated[int, typer.Option(help='Images per forward pass.')] = 64,
    repeats: REPEATS = 5,
    out: OUT = RESULTS,
) -> None:
    """Compare the extraction of features for probes with its forward passes alone.

    Example: explora-bench features --model vit_base_patch16_224 --count 64
    """
    import tempfile

    import torch
    from torch.utils.data import DataLoader, Subset

    from explora_geo.datamodules import FolderDataModule
    from explora_geo.datasets.files import evenly_spaced
    from explora_geo.evaluation import cached_features
    from explora_geo.models import create_vit

    from .engine import add, alternate

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    vit = create_vit(model).to(device).eval()
    tokenizer, blocks = vit.patch_embed, min(4, vit.depth)
    side = tokenizer.grid_size[0] * tokenizer.patch_size
    datamodule = FolderDataModule(images, image_size=side, batch_size=batch)
    datamodule.setup('fit')
    whole: Any = datamodule.train_dataset
    if len(whole) < count:
        raise ValueError(f'{images} holds {len(whole)} images, {count} are asked for')
    dataset = Subset(whole, evenly_spaced(len(whole), count))
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

    steps = {'forward passes alone': forward, 'extraction': extract, 'extraction into the cache': keep}
    times = alternate(steps, repeats)
    path = add(
        out,
        'features',
        'what a probe does with real tiles (reading, normalising, forward passes, pooling, half precision), '
        'and the forward passes alone on the same batches in memory, in turns; the cache also hashes.',
        {'model': model, 'images': count, 'batch': batch, 'workers': workers, 'device': device},
        times,
        {'images/s': {name: count / t.median for name, t in times.items()}},
    )
    typer.echo(path.read_text())


def loading(
    images: Annotated[Path, typer.Argument(help='Folder of training images.')] = TILES / 'train',
    objective: Annotated[str, typer.Option(help='mae or dinov2.')] = 'mae',
    steps: Annotated[int, typer.Option(help='Training steps that count in each round.')] = 10,
    workers: Annotated[list[int], typer.Option(help='Loading processes; repeat for several.')] = [0, 1, 2],  # noqa: B006 - read only
    batch: Annotated[int, typer.Option(help='Images per step.')] = 64,
    repeats: REPEATS = 3,
    out: OUT = RESULTS,
) -> None:
    """Measure the share of training in which it waits for images, by the number of workers.

    Example: explora-bench loading --objective dinov2 --workers 0 --workers 2
    """
    from .engine import add, spread

    adaptations = {'mae': 'M-ExPLoRA-[L]-r32', 'dinov2': 'D-ExPLoRA-[L]-r32'}
    if objective not in adaptations:
        raise ValueError(f'objective must be one of {", ".join(adaptations)}, got {objective!r}')
    waits: dict[str, list[float]] = {f'{number} workers': [] for number in workers}
    speeds: dict[str, list[float]] = {name: [] for name in waits}
    for _ in range(repeats):
        for number, name in zip(workers, waits, strict=True):
            wait, speed = _train(images, adaptations[objective], steps, number, batch)
            waits[name].append(100 * wait)
            speeds[name].append(speed)
    path = add(
        out,
        'loading',
        'share of the training time in which the loop waits for its loader (`data_wait` of the log), real '
        'tiles read from disk, numbers of workers in turns; medians of the rounds.',
        {'objective': objective, 'images': str(images), 'steps': steps, 'batch': batch, 'rounds': repeats},
        {},
        {
            'waits, %': {name: spread(found).median for name, found in waits.items()},
            'at most, %': {name: max(found) for name, found in waits.items()},
            'images/s': {name: spread(found).median for name, found in speeds.items()},
        },
    )
    typer.echo(path.read_text())


def _train(images: Path, adaptation: str, steps: int, workers: int, batch: int) -> tuple[float, float]:
    """Adapt the shipped model; the mean share of waiting, and images per second by the median step."""
    import statistics
    import tempfile

    from lightning.pytorch import seed_everything

    from explora_geo.datamodules import FolderDataModule
    from explora_geo.devices import faster_precision
    from explora_geo.trainers import ExPLoRATask

    from ..tables.training import Progress, build_trainer, quiet

    seed_everything(0, verbose=False)
    task = ExPLoRATask(
        'vit_tiny_patch8_64',
        weights='ViTTiny8_Weights.TINY_IMAGENET_MAE',
        adaptation=adaptation,
        monitor_features='none',
    )
    datamodule = FolderDataModule(images, image_size=64, num_workers=workers, batch_size=batch)
    progress = Progress(None, steps)
    with tempfile.TemporaryDirectory() as folder, quiet():
        trainer = build_trainer(folder, steps, [progress], devices=1, precision=faster_precision())
        trainer.fit(task, datamodule=datamodule)
    return float(trainer.callback_metrics['data_wait']), batch / statistics.median(progress.seconds)
