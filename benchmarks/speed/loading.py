"""How long training waits for its images, with the data module's and the task's own settings."""

import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.profilers import PassThroughProfiler
from rich.console import Console

from explora_geo.datamodules import FolderDataModule
from explora_geo.models import ViTTiny8_Weights
from explora_geo.trainers import CropLink, ExPLoRATask

from .clock import Times, spread
from .records import add_row, begin, section, table

MODEL, SIZE = 'vit_tiny_patch8_64', 64
#: By objective.
ADAPTATIONS = {'mae': 'M-ExPLoRA-[L]-r32', 'dinov2': 'D-ExPLoRA-[L]-r32'}
WORKERS = (0, 1, 2)
TARGET = 0.05


class StepClock(PassThroughProfiler):
    """Keeps when steps end, and how long the training loop waited for its loader; times nothing else.

    Attributes:
        ends: When steps end, seconds.
        waits: Seconds waited since the step before.
    """

    def __init__(self) -> None:
        """Initialize a StepClock."""
        super().__init__()
        self.ends: list[float] = []
        self.waits: list[float] = []
        self._started = self._waited = 0.0

    def start(self, action_name: str) -> None:
        """Start when the loop asks for a batch."""
        if action_name.endswith('train_dataloader_next'):
            self._started = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Note a batch that is there, or a step that is done."""
        now = time.perf_counter()
        if action_name.endswith('train_dataloader_next'):
            self._waited += now - self._started
        elif action_name == 'run_training_batch':
            self.ends.append(now)
            self.waits.append(self._waited)
            self._waited = 0.0

    def share(self, warmup: int) -> float:
        """Share of the time that was waited after the first steps."""
        return sum(self.waits[warmup:]) / (self.ends[-1] - self.ends[warmup - 1])

    def seconds(self, warmup: int) -> float:
        """Seconds per step after the first steps."""
        return (self.ends[-1] - self.ends[warmup - 1]) / (len(self.ends) - warmup)


def measure_loading(
    out: Path,
    objective: str,
    images: Path,
    steps: int,
    repeats: int,
    workers: Sequence[int] = WORKERS,
    precision: Any = '32-true',
    warmup: int = 3,
    **options: Any,
) -> Path:
    """Train shortly with every number of workers in turns.

    Args:
        out: Folder; rows are added to `speed_loading.jsonl`, and `speed_loading.md` shows all of them.
        objective: `mae` or `dinov2`.
        images: Folder of training images.
        steps: Steps that count.
        repeats: Rounds.
        workers: Numbers of processes that load.
        precision: Lightning's name of a precision.
        warmup: Steps before those that count, at least one.
        **options: Further arguments of the data module, in place of its own.

    Returns:
        The Markdown file.

    Raises:
        ValueError: If the objective is unknown.
    """
    if objective not in ADAPTATIONS:
        raise ValueError(f'objective must be one of {", ".join(ADAPTATIONS)}, got {objective!r}')
    found: dict[int, list[tuple[float, float]]] = {n: [] for n in workers}
    batch = 0
    for turn in range(repeats):
        for number in workers:
            Console().print(f'round {turn + 1} of {repeats}, {number} workers')
            datamodule = FolderDataModule(images, image_size=SIZE, num_workers=number, **options)
            batch = datamodule.batch_size
            clock = train(datamodule, objective, warmup + steps, precision)
            found[number].append((clock.share(warmup), clock.seconds(warmup)))
    row = {
        **begin(objective, model=MODEL, image_size=SIZE, batch=batch, precision=precision, steps=steps),
        'repeats': repeats,
        'default_workers': FolderDataModule(images).num_workers,
        'waits': {n: spread([share for share, _ in runs])._asdict() for n, runs in found.items()},
        'seconds': {n: spread([s for _, s in runs])._asdict() for n, runs in found.items()},
    }
    return add_row(out / 'speed_loading.jsonl', row, markdown)


def train(datamodule: FolderDataModule, objective: str, steps: int, precision: Any) -> StepClock:
    """Adapt the shipped model; returns the clock of its steps."""
    seed_everything(0, verbose=False)
    task = ExPLoRATask(
        model=MODEL,
        weights=ViTTiny8_Weights.TINY_IMAGENET_MAE,
        learned_position=False,
        adaptation=ADAPTATIONS[objective],
        monitor_features='none',
    )
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Lightning's advice on loaders and loggers
        trainer = Trainer(
            max_steps=steps,
            accelerator='cuda' if torch.cuda.is_available() else 'cpu',
            devices=1,
            precision=precision,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            limit_val_batches=0,
            callbacks=[CropLink()],
            profiler=clock,
        )
        trainer.fit(task, datamodule=datamodule)
    return clock


def markdown(rows: list[dict[str, Any]]) -> str:
    """All measurements as tables.

    Args:
        rows: Results of `measure_loading`.

    Returns:
        Markdown.
    """
    lines = [
        '# Waiting for images',
        '',
        'Made by `explora-bench loading`: share of the training time in which the loop waits for its loader '
        '(`data_wait`), real tiles read from disk, numbers of workers in turns; median of the rounds with '
        f'the lowest and highest. The target is below {TARGET:.0%} with the default number of workers.',
    ]
    for row in rows:
        s, cells = row['setting'], []
        for number, share in row['waits'].items():
            default = int(number) == row['default_workers']
            seconds = Times(**row['seconds'][number])
            verdict = ('met' if share['median'] < TARGET else 'missed') if default else '-'
            cells.append(
                (
                    f'{number} (default)' if default else number,
                    f'{share["median"]:.1%} ({share["low"]:.1%}-{share["high"]:.1%})',
                    seconds.text(),
                    f'{s["batch"] / seconds.median:,.0f}',
                    verdict,
                )
            )
        title = f'{row["objective"]}, {s["model"]}, batch {s["batch"]}, {s["image_size"]} px'
        lines += [
            *section(title, row, f', {s["precision"]}, {row["repeats"]} rounds of {s["steps"]} steps'),
            *table(('workers', 'waits', 'seconds per step', 'images/s', 'target'), cells),
        ]
    return '\n'.join([*lines, ''])
