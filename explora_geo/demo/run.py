"""Adapt the shipped source model to shipped tiles and show what that bought."""

import copy
import inspect
import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.status import Status
from rich.table import Table
from torch import Tensor

from explora_geo.adaptation import ExPLoRAConfig, merge_lora
from explora_geo.checkpoints import load_backbone, load_weights, write_state
from explora_geo.datamodules import FolderDataModule
from explora_geo.demo.measure import Protocol, compare, measure
from explora_geo.demo.picture import draw, pca_colours
from explora_geo.demo.report import verdict, write
from explora_geo.demo.tiles import Tiles, split_by_class
from explora_geo.models import ViTTiny8_Weights, create_vit
from explora_geo.models.heads import HeadConfig
from explora_geo.models.vit import ViT
from explora_geo.objectives import MAE, DINOv2, MaskConfig, Objective, PhaseConfig, TeacherConfig
from explora_geo.trainers import ExPLoRATask, OptimConfig
from explora_geo.trainers.kernels import faster_precision
from explora_geo.transforms import ViewsConfig

SOURCE = ViTTiny8_Weights.TINY_IMAGENET_MAE
BACKBONE = 'vit_tiny_patch8_64'
_OBJECTIVES: dict[str, type[Objective]] = {'MAE': MAE, 'DINOv2': DINOv2}
_GROUPS: dict[str, Any] = {
    'head': HeadConfig,
    'ibot_head': HeadConfig,
    'teacher': TeacherConfig,
    'phases': PhaseConfig,
    'masks': MaskConfig,
    'views': ViewsConfig,
}


@dataclass(frozen=True)
class Recipe:
    """How the demo adapts; the values come from the search under `benchmarks/`.

    Attributes:
        adaptation: What trains.
        objective: Name of the objective's class.
        arguments: Its arguments, groups of them as mappings.
        optim: Optimiser and schedule.
        steps: Optimiser steps.
        batch_size: Tiles per step.
        crop_scale: Share of a tile's area in a training crop of MAE.
        drop_path_rate: Stochastic depth in training.
    """

    adaptation: ExPLoRAConfig = ExPLoRAConfig.parse('M-ExPLoRA-[L]-r32')  # noqa: RUF009 - frozen
    objective: Literal['MAE', 'DINOv2'] = 'MAE'
    arguments: Mapping[str, Any] = field(default_factory=dict)
    optim: OptimConfig = OptimConfig(base_lr=1e-3, lr_scaling='none', warmup_fraction=0.1)  # noqa: RUF009
    steps: int = 250
    batch_size: int = 128
    crop_scale: tuple[float, float] = (0.2, 1.0)
    drop_path_rate: float = 0.0

    @property
    def name(self) -> str:
        """The adaptation in the paper's notation."""
        return self.adaptation.notation(_OBJECTIVES[self.objective].letter)

    @property
    def factory(self) -> Callable[[ViT], Objective]:
        """What builds the objective around a backbone.

        Raises:
            ValueError: If an argument is unknown or out of range.
        """
        kind = _OBJECTIVES[self.objective]
        try:
            arguments = {k: _GROUPS[k](**v) if k in _GROUPS else v for k, v in self.arguments.items()}
            inspect.signature(kind).bind_partial(**arguments)
        except TypeError as error:
            raise ValueError(f'{self.objective} cannot take {dict(self.arguments)}: {error}') from error
        return partial(kind, **arguments)


def find_data(data: Path | None) -> Path:
    """The folder of the shipped tiles.

    Raises:
        FileNotFoundError: If it is not there.
    """
    here = Path(__file__).resolve().parents[2] / 'tests' / 'data' / 'eurosat_rgb'
    places = [data] if data else [Path('tests/data/eurosat_rgb'), here]
    for place in places:
        if (place / 'train').is_dir() and (place / 'test').is_dir():
            return place
    raise FileNotFoundError(
        f'no EuroSAT tiles with train/ and test/ in {places[0]}: run in a clone of the repository, or '
        'give --data'
    )


def open_data(data: Path, recipe: Recipe) -> tuple[FolderDataModule, Tiles, Tiles]:
    """Datamodule of the unlabelled tiles, and labelled train and test tiles, normalised."""
    datamodule = FolderDataModule(
        data / 'train',
        image_size=64,
        batch_size=recipe.batch_size,
        crop_scale=recipe.crop_scale,
        vertical_flip=True,
        cache=True,
    )
    datamodule.setup('fit')
    parts = (Tiles.read(data / part, datamodule.image_size) for part in ('train', 'test'))
    train, test = (tiles.normalised(datamodule) for tiles in parts)
    return datamodule, train, test


def adapt(
    datamodule: FolderDataModule,
    recipe: Recipe,
    out: Path,
    progress: bool = True,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> ExPLoRATask:
    """Run the adaptation; the task leaves its report and the adapter file behind.

    Args:
        datamodule: Unlabelled tiles.
        recipe: How to adapt.
        out: Folder of these files.
        progress: Show a progress bar.
        seed: Seed of new weights, order and crops.
        callbacks: Further callbacks of the trainer.
        **settings: Arguments of `ExPLoRATask` in place of the demo's.

    Returns:
        The trained task.
    """
    seed_everything(seed, verbose=False)
    demo: dict[str, Any] = {'model': BACKBONE, 'weights': SOURCE, 'learned_position': False}
    task = ExPLoRATask(
        adaptation=recipe.adaptation,
        objective=recipe.factory,
        optim=recipe.optim,
        preset=None,  # the recipe is complete
        drop_path_rate=recipe.drop_path_rate,
        monitor_features='none',
        **{**demo, **settings},
    )
    trainer = Trainer(
        max_steps=recipe.steps,
        accelerator='auto',
        devices=1,
        precision=faster_precision(),
        default_root_dir=out,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress,
        limit_val_batches=0,
        gradient_clip_val=3.0,
        callbacks=list(callbacks),
    )
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Lightning's advice on loaders and loggers
        trainer.fit(task, datamodule=datamodule)
    return task


def plain(vit: ViT) -> ViT:
    """A merged copy on the CPU, in evaluation mode."""
    merged: ViT = merge_lora(copy.deepcopy(vit)).requires_grad_(False).cpu().eval()  # type: ignore[assignment]
    merged.mask_token = None  # only pre-training uses it, and timm's models have none
    return merged


def reconstructions(objective: Objective, image: Tensor) -> dict[str, Tensor]:
    """Masked input and reconstruction, by the source where the objective has no decoder.

    Args:
        objective: What adapted the model.
        image: Normalised images, shape (N, C, H, W).

    Returns:
        Images by title, each of the input's shape and units.
    """
    if isinstance(objective, MAE):
        return objective.cpu().eval().pictures(image)
    vit = create_vit(BACKBONE, learned_position=False)
    parts = load_weights(vit, SOURCE).parts
    source = MAE(vit)
    source.load_pretrained(parts)
    pictures = source.eval().pictures(image)
    pictures['reconstruction\nby the source'] = pictures.pop('reconstruction')
    return pictures


def run_demo(
    out: Path,
    steps: int | None = None,
    data: Path | None = None,
    protocol: Protocol = Protocol(),  # noqa: B008 - read only
    recipe: Recipe = Recipe(),
    dry_run: bool = False,
) -> dict[str, Any]:
    """Run the demo and write its report, picture and adapter.

    Args:
        out: Folder to write.
        steps: Adaptation steps instead of the recipe's.
        data: Folder with `train/` and `test/` class folders.
        protocol: Label budgets and seeds.
        recipe: How to adapt.
        dry_run: Only say what would be done.

    Returns:
        The report; empty if nothing was done.

    Raises:
        FileNotFoundError: If the tiles are not found.
        ValueError: If there are no steps.
    """
    if steps is not None:
        if steps < 1:
            raise ValueError(f'steps must be at least 1, got {steps}')
        recipe = Recipe(**{**vars(recipe), 'steps': steps})
    logging.getLogger('lightning.pytorch').setLevel(logging.ERROR)
    console = Console()
    folder = find_data(data)
    name = recipe.name
    seconds: dict[str, float] = {}

    def timed(part: str, start: float) -> float:
        seconds[part] = round(time.perf_counter() - start, 1)
        return time.perf_counter()

    console.rule('ExPLoRA on Sentinel-2 tiles')
    console.print(
        f'1. read EuroSAT tiles from {folder}\n2. adapt {BACKBONE} ({SOURCE.name}, natural images) without '
        f'labels: {name}, {recipe.steps} steps of {recipe.batch_size}\n3. linear probe, k-NN and LoRA-r8 '
        f'tuning before and after, on held-out tiles\n4. write {out}/',
        markup=False,
        highlight=False,
    )
    if dry_run:
        return {}
    out.mkdir(parents=True, exist_ok=True)
    clock = time.perf_counter()
    datamodule, train, test = open_data(folder, recipe)
    source = load_backbone(BACKBONE, SOURCE, learned_position=False)
    labelled, validation = split_by_class(train.label, 0.75)
    parts = (train.take(labelled), train.take(validation), test)
    clock = timed('reading', clock)
    task = adapt(datamodule, recipe, out, progress=console.is_terminal)
    adapted = plain(task.model.final_backbone)
    write_state(out / 'model.safetensors', adapted.state_dict(), {'format': 'pt', 'backbone': BACKBONE})
    clock = timed('adaptation', clock)
    scores = {}
    for title, vit in (('source', source), ('adapted', adapted)):
        with console.status('') as status:

            def progress(text: str, title: str = title, status: Status = status) -> None:
                status.update(f'{title}: {text}')

            scores[title] = measure(vit, *parts, protocol, progress)
        clock = timed(f'measuring the {title}', clock)
    rows = compare(scores['source'], scores['adapted'], protocol)

    report = {
        'adaptation': name,
        'source': f'{BACKBONE} {SOURCE.name}, {SOURCE.meta["dataset"]}',
        'config': recipe.adaptation.to_dict(),
        'objective': {'name': recipe.objective, **recipe.arguments},
        'optim': dict(vars(recipe.optim)),
        'precision': faster_precision(),
        'steps': recipe.steps,
        'batch': recipe.batch_size,
        'trainable_share': task.trainable_share,
        'tiles': {
            'unlabelled': len(train.label),
            'labelled': len(labelled),
            'validation': len(validation),
            'test': len(test.label),
        },
        'rows': rows,
        'before': scores['source'].to_dict(),
        'after': scores['adapted'].to_dict(),
        'verdict': verdict(rows),
        'adapter': {
            f'{part}_mb': (out / f'{part}.safetensors').stat().st_size / 1e6 for part in ('adapter', 'model')
        },
        'seconds': seconds,
        'skipped_files': task.skipped,
    }
    write(out, report)  # before the picture, which is the last that may fail
    shown = test.take(torch.arange(0, len(test.label), max(1, len(test.label) // 10))[:10]).image
    mean, std = (x.view(1, -1, 1, 1) for x in (datamodule.mean, datamodule.std))
    several = test.image[:: max(1, len(test.image) // 200)]
    pixels = {k: (v * std + mean) / 255 for k, v in reconstructions(task.model, shown).items()}
    colours = {
        f'features, {title}': pca_colours(vit, torch.cat([shown, several]), len(shown))
        for title, vit in (('source', source), ('adapted', adapted))
    }
    draw(out / 'demo.png', (shown * std + mean) / 255, pixels, colours, rows, f'{name}: EuroSAT RGB')
    timed('picture', clock)
    write(out, report)
    _show(console, report, out)
    return report


def _show(console: Console, report: dict[str, Any], out: Path) -> None:
    table = Table('test accuracy, %', 'source', 'adapted', 'gain', title='Before and after')
    for row in report['rows']:
        cells = [f'{100 * row[k]["mean"]:.1f} ± {100 * row[k]["half"]:.1f}' for k in ('before', 'after')]
        gain = f'{100 * row["gain"]["mean"]:+.1f} ± {100 * row["gain"]["half"]:.1f}'
        table.add_row(row['measurement'], *cells, gain)
    console.print(table)
    sizes = report['adapter']
    console.print(report['verdict'], highlight=False)
    console.print(
        f'adapter {sizes["adapter_mb"]:.2f} MB, whole model {sizes["model_mb"]:.2f} MB; '
        f'{sum(report["seconds"].values()):.0f} s in all\n'
        f'report: {out / "demo.md"}\npicture: {out / "demo.png"}',
        highlight=False,
    )
