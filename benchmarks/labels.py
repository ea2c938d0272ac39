"""What an adaptation is worth at every label budget: backbones x ways of tuning x budgets x seeds."""

import logging
import math
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import seed_everything
from rich.console import Console
from torch.utils.data import Subset

from explora_geo.checkpoints import atomic_path
from explora_geo.datamodules import EuroSATDataModule
from explora_geo.evaluation import Budget, mean_interval
from explora_geo.trainers import ClassificationTask, OptimConfig, Regularisation
from explora_geo.trainers.kernels import faster_precision

from .fitting import build_trainer, draw_training_labels
from .paper import records


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        data: Arguments of `EuroSATDataModule`.
        backbones: Arguments of `ClassificationTask` by the backbone's name, such as `weights`, `adapter`.
        tunings: Optimiser and regularisation by way of tuning.
        steps: Optimiser steps by label budget.
        seeds: Draws of labels.
        trainer: Further arguments of the trainer; `precision` is the machine's faster one by default.
    """

    data: dict[str, Any]
    backbones: dict[str, dict[str, Any]]
    tunings: dict[str, dict[str, Any]]
    steps: dict[str, int]
    seeds: int = 3
    trainer: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> 'Plan':
        """Read a YAML file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If a key is missing or unknown.
        """
        if not path.is_file():
            raise FileNotFoundError(f'no plan {path}')
        try:
            plan = cls(**yaml.safe_load(path.read_text()))
        except TypeError as error:
            raise ValueError(f'{path} does not fit: {error}') from error
        for budget in plan.steps:
            Budget.parse(budget)
        return plan


def run_labels(path: Path, out: Path) -> Path:
    """Run what is not yet in the results, one row after the other.

    Nothing is chosen on the test tiles: every run ends after its steps.

    Args:
        path: The plan.
        out: Folder; the results are `<name of plan>.jsonl` and `.md` there.

    Returns:
        The Markdown file.
    """
    logging.getLogger('lightning.pytorch').setLevel(logging.ERROR)
    plan, console = Plan.read(path), Console()
    results = out / f'{path.stem}.jsonl'
    for budget in plan.steps:
        for tuning in plan.tunings:
            for seed in range(plan.seeds):
                for backbone in plan.backbones:
                    row: dict[str, Any] = {
                        'backbone': backbone,
                        'tuning': tuning,
                        'labels': budget,
                        'seed': seed,
                    }
                    # Another process may add to the same file.
                    if _key(row) in {_key(r) for r in records.read(results)}:
                        continue
                    row |= _run(plan, **row)
                    console.print(row, highlight=False)
                    records.append(results, row)
    report = out / f'{path.stem}.md'
    with atomic_path(report) as temporary:
        temporary.write_text(markdown(records.read(results), path))
    return report


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[k] for k in ('backbone', 'tuning', 'labels', 'seed'))


def _run(plan: Plan, backbone: str, tuning: str, labels: str, seed: int) -> dict[str, Any]:
    seed_everything(seed, verbose=False)
    data = EuroSATDataModule(**plan.data)
    data.setup('fit')
    training: Any = data.train_dataset
    source: Any = training.dataset if isinstance(training, Subset) else training
    images = draw_training_labels(data, labels, seed)
    data.batch_size = min(data.batch_size, images)
    settings = plan.tunings[tuning]
    task = ClassificationTask(
        num_classes=len(source.classes),
        tuning=tuning,  # type: ignore[arg-type]
        optim=OptimConfig(**settings.get('optim', {})),
        regularisation=Regularisation(**settings.get('regularisation', {})),
        **plan.backbones[backbone],
    )
    steps = plan.steps[labels]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        epochs = math.ceil(steps / max(images // data.batch_size, 1))
        settings = {'precision': faster_precision(), **plan.trainer}
        trainer = build_trainer(folder, steps, max_epochs=epochs, **settings)
        trainer.fit(task, datamodule=data)
        seconds = time.perf_counter() - start
        data.batch_size = plan.data.get('batch_size', 64)
        score = trainer.test(task, datamodule=data, verbose=False)[0]
    return {
        'images': images,
        'accuracy': round(score['test_OverallAccuracy'], 4),
        'steps': trainer.global_step,
        'precision': str(trainer.precision),
        'seconds': round(seconds, 1),
    }


def markdown(rows: list[dict[str, Any]], path: Path) -> str:
    """The table: a row per budget and way of tuning, and the gain paired by seed.

    Args:
        rows: Finished runs.
        path: The plan they belong to.

    Returns:
        Markdown.
    """
    backbones = list(dict.fromkeys(r['backbone'] for r in rows))
    first = backbones[0] if backbones else ''
    lines = [
        f'# Accuracy by label budget: {path.stem}',
        '',
        f'Made by `explora-bench labels {path}`. Test accuracy, %: mean over label draws with its 95 % '
        f'Student t interval; the gain over {first} is paired by seed. Nothing is chosen on the test tiles.',
        '',
        '| labels | images | tuning | '
        + ' | '.join(backbones)
        + ''.join(f' | gain of {b}' for b in backbones[1:])
        + ' |',
        '|' + '---|' * (3 + 2 * len(backbones) - 1),
    ]
    for labels, tuning in dict.fromkeys((r['labels'], r['tuning']) for r in rows):
        found: dict[str, dict[int, float]] = {}
        images = 0
        for row in rows:
            if (row['labels'], row['tuning']) == (labels, tuning):
                found.setdefault(row['backbone'], {})[row['seed']] = row['accuracy']
                images = row['images']
        cells = [_interval(list(found.get(b, {}).values())) for b in backbones]
        for name in backbones[1:]:
            both = found.get(first, {}).keys() & found.get(name, {}).keys()
            cells.append(_interval([found[name][s] - found[first][s] for s in both], '+'))
        lines.append(f'| {labels} | {images:,} | {tuning} | ' + ' | '.join(cells) + ' |')
    return '\n'.join([*lines, ''])


def _interval(values: list[float], sign: str = '') -> str:
    if not values:
        return ''
    if len(values) == 1:
        return f'{100 * values[0]:{sign}.1f}'
    found = mean_interval(values)
    return f'{100 * found.mean:{sign}.1f} ± {100 * found.half:.1f}'
