"""Run every arm and seed in a process of its own, and keep what is finished."""

import logging
import multiprocessing
import re
import resource
import shutil
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from explora_geo.adaptation import trainable_summary
from explora_geo.checkpoints import atomic_path, load_backbone
from explora_geo.demo.run import adapt, plain

from ..paper import records
from .config import read_arms
from .measure import Images, StepTimer
from .report import draw, markdown


def run_arms(config: Path, out: Path, only: str = '') -> Path:
    """Run the arms and seeds that are not yet in the results, each in a process of its own.

    Args:
        config: File of arms.
        out: Folder; the results are `<name of config>.jsonl`, `.md` and `.png` there.
        only: Run only arms whose name holds this text.

    Returns:
        The Markdown file.
    """
    setting, arms = read_arms(config)
    out.mkdir(parents=True, exist_ok=True)
    results = out / f'{config.stem}.jsonl'
    console = Console()
    for arm in arms.values():
        for seed in range(setting.seeds if arm.recipe else 1):
            # Another process may add to the same file.
            done = {(row['name'], row['seed']) for row in records.read(results)}
            if (arm.name, seed) in done or only not in arm.name:
                continue
            console.print(f'{arm.name}, seed {seed}', markup=False)
            records.append(results, _in_child(config, arm.name, seed))
    rows = records.read(results)
    ordered = {name: [row for row in rows if row['name'] == name] for name in arms}
    ordered = {name: found for name, found in ordered.items() if found}
    report = out / f'{config.stem}.md'
    with atomic_path(report) as temporary:
        temporary.write_text(markdown(ordered, arms, setting, config))
    draw(out / f'{config.stem}.png', ordered)
    console.print(report.read_text(), markup=False)
    return report


def _in_child(config: Path, name: str, seed: int) -> dict[str, Any]:
    """Run an arm where no other one has left memory behind."""
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(run_arm, config, name, seed).result()


def run_arm(config: Path, name: str, seed: int) -> dict[str, Any]:
    """Adapt and measure once.

    Args:
        config: File of arms.
        name: Name of the arm.
        seed: Seed of the run.

    Returns:
        Row of the results.
    """
    logging.getLogger('lightning.pytorch').setLevel(logging.ERROR)
    setting, arms = read_arms(config)
    arm = arms[name]
    images = Images(setting, arm.recipe.batch_size if arm.recipe else 64)
    row: dict[str, Any] = {'name': name, 'seed': seed}
    if arm.recipe is None:
        vit = load_backbone(setting.model, setting.weights, img_size=setting.image_size)
        row.update(curve=[(0, images.knn(vit))])
    else:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        timer = StepTimer(images.knn, setting.every)
        with tempfile.TemporaryDirectory() as folder:
            task = adapt(
                images.module,
                arm.recipe,
                Path(folder),
                progress=False,
                seed=seed,
                callbacks=[timer],
                model=setting.model,
                weights=None if arm.scratch else setting.weights,
                img_size=setting.image_size,
                learned_position=setting.learned_position,
                guard=None,  # every arm is to be seen as it is
            )
            adapter = Path(folder) / 'adapter.safetensors'
            if adapter.is_file():
                kept = adapter_file(config, name, seed)
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(adapter, kept)
        cuda = torch.cuda.is_available()
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        row.update(
            trainable=sum(trainable_summary(task.backbone).values()),
            seconds_per_step=statistics.median(timer.seconds),
            peak_memory=torch.cuda.max_memory_allocated() if cuda else grown,
            loss=float(task.trainer.callback_metrics['train_loss']),
            curve=timer.curve,
        )
        vit = plain(task.model.final_backbone)
    return {**row, 'scores': images.scores(vit), 'torch': torch.__version__, 'device': _device()}


def adapter_file(config: Path, name: str, seed: int) -> Path:
    """Where the adapter of an arm is kept, for use in what follows."""
    plain_name = re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')
    return Path('runs/arms') / config.stem / f'{plain_name}-{seed}.safetensors'


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f'CPU, {torch.get_num_threads()} threads'
