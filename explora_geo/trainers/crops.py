"""Where the crops of an objective meet the images of a data module."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn

from explora_geo.models.builders import task_size
from explora_geo.models.matching import tile_side


def fit_crops(task: Any, datamodule: Any) -> None:
    """Keep crops whose size neither arguments nor the name give from being larger than the images.

    Args:
        task: Task of pre-training.
        datamodule: Data module, set up, or None.
    """
    side = tile_side(datamodule)
    unsized = task.options.img_size is None and task_size(task.hparams['model']) is not None
    if side is not None and unsized:
        task.model.cap_views(side)


class CropLink(Callback):
    """Gives the crops of the objective to the data module, which then cuts them out of whole images.

    Without it the objective cuts its crops out of the one crop that the data module made. `explora-geo fit`
    and `adapt` add it; in Python it is `Trainer(callbacks=[CropLink()])`.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Link task and data module, once both know their images."""
        task: Any = pl_module
        datamodule: Any = getattr(trainer, 'datamodule', None)
        if hasattr(datamodule, 'use_views') and hasattr(task.model, 'views'):
            fit_crops(task, datamodule)
            datamodule.use_views(task.model.views)


def warn_unlinked(task: Any, datamodule: Any) -> None:
    """Warn of crops that would be cut out of crops.

    Args:
        task: Task of pre-training, in a trainer.
        datamodule: Its data module, or None.
    """
    linked = any(isinstance(callback, CropLink) for callback in task.trainer.callbacks)
    own = getattr(getattr(datamodule, 'augment', None), 'views', None)
    if task.model.views and hasattr(datamodule, 'use_views') and not (linked or own):
        rank_zero_warn(
            'the objective cuts its crops out of the crops of the data module: add CropLink() to the '
            'callbacks of the trainer, as explora-geo fit does'
        )
