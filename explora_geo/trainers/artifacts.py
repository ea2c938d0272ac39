"""Outputs of a run: report, weights, pictures, and checkpoints written atomically."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, save
from torchvision.utils import make_grid, save_image

from explora_geo._atomic import atomic_path, write_text

#: Number of validation images in the pictures.
_SHOWN = 8


def run_folder(trainer: Trainer) -> Path:
    """Return the logger's folder, or the trainer's root folder if there is no logger.

    `Trainer.log_dir` returns the same folder, but hangs if only the first process asks for it.
    """
    logger: Any = trainer.logger
    versioned = isinstance(logger, TensorBoardLogger | CSVLogger)
    folder = logger.log_dir if versioned else logger and logger.save_dir
    return Path(folder or trainer.default_root_dir)


def two_rows(image: Tensor, other: Tensor, shown: Sequence[int]) -> Tensor:
    """Return two rows of images stretched to [0, 1], shape (3, 2·H, B·W), with frames side by side.

    Args:
        image: Images, shape (B, C, H, W) or (B, T, C, H, W).
        other: The objective's output for them, of the same shape.
        shown: Bands shown as red, green and blue, or a single band shown in gray.
    """
    rows = [x.flatten(0, -4)[:, list(shown)].expand(-1, 3, -1, -1) for x in (image, other)]
    low, high = rows[0].amin(), rows[0].amax()
    grid = make_grid(torch.cat(rows), nrow=len(rows[0]), padding=0)
    return ((grid - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint writer that replaces the existing file only once the new one is complete on disk.

    Lightning's own writer holds a whole checkpoint in memory and moves it from the system's temporary folder.
    If that folder is on another disk, the move is a copy, which can be interrupted.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; leave remote storage addresses to Lightning.

        Raises:
            OSError: If there is not enough space; the existing file is kept.
        """
        if '://' in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        for left in path.parent.glob(f'.{path.name}.*'):
            left.unlink(missing_ok=True)  # left by a run killed while writing
        with atomic_path(path, _bytes(checkpoint)) as temporary:
            save(checkpoint, temporary)


def _bytes(content: Any) -> int:
    """Return the size of all tensors in a checkpoint, in bytes."""
    if isinstance(content, Tensor):
        return content.nbytes
    parts = content.values() if isinstance(content, dict) else content
    return sum(map(_bytes, parts)) if isinstance(content, dict | list | tuple) else 0


class Artifacts(Callback):
    """Callback that writes `report.json`, the task's weights and validation pictures to the run's folder.

    A task implements `write_weights(folder)`, which writes files and returns report entries, and
    `pictures(batch)`, which returns tensors, shape (3, H, W), or figures by title. Loggers that accept
    images (TensorBoard) receive them; otherwise they are saved as PNG files in `pictures/`.
    """

    def __init__(self) -> None:
        """Initialize an Artifacts callback."""
        self.history: list[dict[str, float]] = []
        self._start = 0.0
        self._batch: dict[str, Any] | None = None

    @staticmethod
    def wanted(trainer: Trainer) -> bool:
        """Return whether this process writes files; a trial run (`fast_dev_run`) writes none."""
        trial: Any = trainer.fast_dev_run  # type: ignore[attr-defined]
        return trainer.is_global_zero and not trial

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the epoch's metrics for the report."""
        row = {k: round(float(v), 6) for k, v in trainer.callback_metrics.items()}
        self.history.append({'epoch': trainer.current_epoch, 'step': trainer.global_step, **row})

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Keep a few validation images for the pictures."""
        if batch_idx == 0 and self.wanted(trainer):
            self._batch = {k: v[:_SHOWN].detach() for k, v in batch.items() if isinstance(v, Tensor)}

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw the task's output for the kept images."""
        batch, self._batch = self._batch, None
        experiment: Any = getattr(trainer.logger, 'experiment', None)
        for title, picture in (pl_module.pictures(batch) if batch else {}).items():
            drawn = isinstance(picture, Tensor)
            add = getattr(experiment, 'add_image' if drawn else 'add_figure', None)
            if add is not None:
                add(title, picture, trainer.global_step)
            else:
                file = run_folder(trainer) / 'pictures' / f'{title}_{trainer.global_step:06d}.png'
                with atomic_path(file) as temporary:
                    if drawn:
                        save_image(picture.cpu(), temporary, format='png')
                    else:
                        picture.savefig(temporary, dpi=100, format='png')
            if not drawn:
                plt.close(picture)

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write the report and the weights."""
        if self.wanted(trainer):
            _report(
                run_folder(trainer),
                {
                    **pl_module.write_weights(run_folder(trainer)),
                    'steps': trainer.global_step,
                    'seconds': round(time.perf_counter() - self._start, 1),
                    'history': self.history,
                    'skipped_files': {'count': len(pl_module.skipped), 'files': pl_module.skipped},
                },
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the report and the weights of an interrupted run."""
        if trainer.global_step:
            self.on_fit_end(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the test metrics to the report."""
        if self.wanted(trainer):
            values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith('test_')}
            _report(run_folder(trainer), {'test': values})


def _report(folder: Path, entries: Mapping[str, Any]) -> None:
    """Add entries to a run's report."""
    file = folder / 'report.json'
    known = json.loads(file.read_text()) if file.is_file() else {}
    write_text(file, json.dumps({**known, **entries}, indent=1))
