"""What a tuning run leaves behind: report, self-contained model file, pictures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torchgeo.datasets import RGBBandsMissingError

from explora_geo.adaptation import trainable_summary
from explora_geo.checkpoints import atomic_path
from explora_geo.models.matching import normalization_of
from explora_geo.trainers.folder import run_folder
from explora_geo.trainers.run_report import RunReport

if TYPE_CHECKING:
    from explora_geo.trainers.tuning import TuningTask


def describe_data(datamodule: Any, bands: Sequence[str]) -> dict[str, Any]:
    """What a data module says of its images, as plain values.

    Args:
        datamodule: Data module of ours or of TorchGeo, or None.
        bands: Names of the model's bands.

    Returns:
        `bands`, and where known the fields of `Normalization` (`clip` where results are cut off), `classes`
        and `colours`.
    """
    found: dict[str, Any] = {'bands': list(bands)}
    normalization = normalization_of(datamodule, bands)
    if normalization is not None:
        found |= {k: v for k, v in normalization.to_dict().items() if v}
    for dataset in (getattr(datamodule, f'{part}_dataset', None) for part in ('train', 'val', 'test')):
        dataset = getattr(dataset, 'dataset', dataset)  # a Subset's
        classes = getattr(dataset, 'classes', None)
        if classes and 'classes' not in found:
            found['classes'] = [str(c) for c in classes]
        colours = getattr(dataset, 'colors', None)
        if colours and 'colours' not in found:
            found['colours'] = [list(map(int, c)) for c in colours]
    return found


class TuningReport(RunReport):
    """Writes `report.json`, `model.safetensors` and pictures of validation images.

    Files go to the logger's folder, or to the trainer's root folder without one. Loggers that take figures
    (TensorBoard) get the pictures, with others they become PNG files in `pictures/`.
    """

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show the first image of the first batch with target and prediction."""
        datamodule: Any = getattr(trainer, 'datamodule', None)
        if batch_idx or trainer.sanity_checking or not self.wanted(trainer):
            return
        if not hasattr(datamodule, 'plot'):
            return
        task: TuningTask = pl_module  # type: ignore[assignment]
        figure = _figure(task, datamodule, batch)
        if figure is None:
            return
        experiment: Any = getattr(trainer.logger, 'experiment', None)
        if hasattr(experiment, 'add_figure'):
            experiment.add_figure('validation', figure, trainer.global_step)
        else:
            file = run_folder(trainer) / 'pictures' / f'validation_{trainer.global_step:06d}.png'
            with atomic_path(file) as temporary:
                figure.savefig(temporary, dpi=100, format='png')
        plt.close(figure)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the test metrics to the report."""
        if self.wanted(trainer):
            values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith('test_')}
            self._update(run_folder(trainer) / 'report.json', {'test': values})

    def write(self, trainer: Trainer, task: 'TuningTask') -> Path:
        """Write report and model to the run's folder.

        Returns:
            The folder.
        """
        from explora_geo.trainers.taskfile import save_task

        folder = run_folder(trainer)
        save_task(folder / 'model.safetensors', task)
        head = sum(p.numel() for p in task.model.head.parameters())
        report = {
            'task': type(task).__name__,
            'backbone': task.hparams['model'],
            'tuning': task.hparams['tuning'],
            'adaptation': task.config.notation(),
            'config': task.config.to_dict(),
            'optim': dict(vars(task.optim)),
            'trainable': {**trainable_summary(task.model.backbone), 'head': head},
            'steps': trainer.global_step,
            'seconds': self.seconds,
            'history': self.history,
            'skipped_files': {'count': len(task.skipped), 'files': task.skipped},
        }
        self._update(folder / 'report.json', report)
        return folder

    @staticmethod
    def _update(file: Path, values: Mapping[str, Any]) -> None:
        known = json.loads(file.read_text()) if file.is_file() else {}
        with atomic_path(file) as temporary:
            temporary.write_text(json.dumps({**known, **values}, indent=1))


@torch.no_grad()
def _figure(task: 'TuningTask', datamodule: Any, batch: Mapping[str, Any]) -> Any:
    image = batch['image'][:1]
    times = batch.get('timestamps')
    predicted = task.predict(task(image, None if times is None else times[:1]))
    mean, std = (task.data.get(name) for name in ('mean', 'std'))
    shown: Tensor = image[0].float().cpu()
    if mean is not None and std is not None:
        shown = shown * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    sample = {
        'image': shown,
        task.target_key: batch[task.target_key][0].cpu(),
        'prediction': task.decide(predicted)[0].cpu(),
    }
    try:
        return datamodule.plot(sample)
    except RGBBandsMissingError:  # TorchGeo's data sets show true colour or nothing
        return None
