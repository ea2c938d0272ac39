"""Adapt a small source model to tiles by a recipe."""

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback

from explora_geo.adaptation import ExPLoRAConfig, merge_lora
from explora_geo.datamodules import FolderDataModule
from explora_geo.demo.tiles import Tiles
from explora_geo.models import ViTTiny8_Weights
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
