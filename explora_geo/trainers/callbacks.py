"""What a pre-training run leaves behind: a report, the adapter or model file, pictures."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchvision.utils import save_image

from explora_geo.adaptation import trainable_summary
from explora_geo.checkpoints.adapter import save_adapter
from explora_geo.checkpoints.files import atomic_path, write_state
from explora_geo.checkpoints.io import model_metadata
from explora_geo.trainers.folder import run_folder

if TYPE_CHECKING:
    from explora_geo.trainers.pretrain import ExPLoRATask


class PretrainReport(Callback):
    """Writes `report.json`, `adapter.safetensors` (or `model.safetensors`) and pictures.

    Files go to the logger's folder, or to the trainer's root folder without one. Loggers that take
    images (TensorBoard) get the pictures, with others they become PNG files in `pictures/`.
    """

    def __init__(self) -> None:
        """Initialize a PretrainReport."""
        self.history: list[dict[str, float]] = []
        self._image: Tensor | None = None
        self._timestamps: Tensor | None = None
        self._start = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and say once what was loaded."""
        self._start = time.perf_counter()
        rank_zero_info(pl_module.load_report)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep a few validation images for the pictures."""
        if batch_idx == 0:
            self._image = batch['image'][:8].detach()
            times = batch.get('timestamps')
            self._timestamps = None if times is None else times[:8]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show what the objective does with the kept images: to the logger, else as PNG files."""
        if self._image is None or not trainer.is_global_zero or _trial(trainer):
            return
        task: ExPLoRATask = pl_module  # type: ignore[assignment]
        experiment: Any = getattr(trainer.logger, 'experiment', None)
        for title, images in task.model.pictures(self._image, self._timestamps).items():
            grid = _grid(self._image, images)
            if hasattr(experiment, 'add_image'):
                experiment.add_image(title, grid, trainer.global_step)
            else:
                file = run_folder(trainer) / 'pictures' / f'{title}_{trainer.global_step:06d}.png'
                with atomic_path(file) as temporary:
                    save_image(grid.cpu(), temporary, format='png')

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the epoch's numbers for the report."""
        row = {k: round(float(v), 6) for k, v in trainer.callback_metrics.items()}
        self.history.append({'epoch': trainer.current_epoch, 'step': trainer.global_step, **row})

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files."""
        if trainer.is_global_zero and not _trial(trainer):
            self.write(trainer, pl_module)  # type: ignore[arg-type]

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep what a stopped run has learnt."""
        if trainer.is_global_zero and trainer.global_step and not _trial(trainer):
            self.write(trainer, pl_module)  # type: ignore[arg-type]

    def write(self, trainer: Trainer, task: 'ExPLoRATask') -> Path:
        """Write report and weights to the run's folder.

        Returns:
            The folder.
        """
        folder = run_folder(trainer)
        name = task.hparams['model']
        if task.config.full:
            file = folder / 'model.safetensors'
            state = {**task.model.final_backbone.state_dict(), **task.model.extra_state()}
            write_state(file, state, model_metadata(task.backbone, name))
        else:
            file = folder / 'adapter.safetensors'
            dtype = getattr(torch, task.hparams['adapter_dtype'])
            source = task.model.final_backbone
            save_adapter(file, task.backbone, name, task.config, source, dtype, task.base_sha256)
        report = {
            'backbone': name,
            'adaptation': task.config.notation(task.model.letter),
            'config': task.config.to_dict(),
            'load_report': task.load_report,
            'trainable': trainable_summary(task.backbone),
            'trainable_share': task.trainable_share,
            'steps': trainer.global_step,
            'stopped': task.stopped,
            'seconds': round(time.perf_counter() - self._start, 1),
            'starting_score': task.features.starting,
            'history': self.history,
            'skipped_files': {'count': len(task.skipped), 'files': task.skipped},
            'weights': file.name,
        }
        with atomic_path(folder / 'report.json') as temporary:
            temporary.write_text(json.dumps(report, indent=1))
        return folder


def _trial(trainer: Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def _grid(image: Tensor, other: Tensor) -> Tensor:
    """Two rows of pictures with values stretched to [0, 1], shape (3, 2·H, B·W); frames side by side."""
    if image.ndim == 5:
        image, other = image.flatten(0, 1), other.flatten(0, 1)
    bands = slice(0, 3) if image.shape[1] >= 3 else [0, 0, 0]
    low, high = image.amin(), image.amax()
    rows = [torch.cat(list(x[:, bands]), dim=-1) for x in (image, other)]
    return ((torch.cat(rows, dim=-2) - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
