"""What a pre-training run leaves behind: a report, the adapter or model file, pictures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchvision.utils import save_image

from explora_geo.adaptation import trainable_summary
from explora_geo.bands import true_color_bands
from explora_geo.checkpoints.adapter import save_adapter
from explora_geo.checkpoints.files import atomic_path, write_state
from explora_geo.checkpoints.metadata import model_metadata
from explora_geo.trainers.folder import run_folder
from explora_geo.trainers.run_report import RunReport

if TYPE_CHECKING:
    from explora_geo.trainers.pretrain import ExPLoRATask


class PretrainReport(RunReport):
    """Writes `report.json`, `adapter.safetensors` (or `model.safetensors`) and pictures.

    Files go to the logger's folder, or to the trainer's root folder without one. Loggers that take
    images (TensorBoard) get the pictures, with others they become PNG files in `pictures/`.
    """

    def __init__(self) -> None:
        """Initialize a PretrainReport."""
        super().__init__()
        self._image: Tensor | None = None
        self._timestamps: Tensor | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and say once what was loaded."""
        super().on_fit_start(trainer, pl_module)
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
        if self._image is None or not self.wanted(trainer):
            return
        task: ExPLoRATask = pl_module  # type: ignore[assignment]
        experiment: Any = getattr(trainer.logger, 'experiment', None)
        shown = true_color_bands(task.backbone.patch_embed.bands)
        for title, images in task.model.pictures(self._image, self._timestamps).items():
            grid = _grid(self._image, images, shown)
            if hasattr(experiment, 'add_image'):
                experiment.add_image(title, grid, trainer.global_step)
            else:
                file = run_folder(trainer) / 'pictures' / f'{title}_{trainer.global_step:06d}.png'
                with atomic_path(file) as temporary:
                    save_image(grid.cpu(), temporary, format='png')

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
            'seconds': self.seconds,
            'starting_score': task.features.starting,
            'history': self.history,
            'skipped_files': {'count': len(task.skipped), 'files': task.skipped},
            'weights': file.name,
        }
        with atomic_path(folder / 'report.json') as temporary:
            temporary.write_text(json.dumps(report, indent=1))
        return folder


def _grid(image: Tensor, other: Tensor, shown: Sequence[int]) -> Tensor:
    """Two rows of pictures with values stretched to [0, 1], shape (3, 2·H, B·W); frames side by side.

    Args:
        image: Images, shape (B, C, H, W) or (B, T, C, H, W).
        other: What the objective makes of them, of the same shape.
        shown: Bands to show as red, green and blue, or the one to show in gray.
    """
    if image.ndim == 5:
        image, other = image.flatten(0, 1), other.flatten(0, 1)
    image, other = (x[:, list(shown)].expand(-1, 3, -1, -1) for x in (image, other))
    low, high = image.amin(), image.amax()
    rows = [torch.cat(list(x), dim=-1) for x in (image, other)]
    return ((torch.cat(rows, dim=-2) - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
