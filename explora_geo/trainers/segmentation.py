"""SegmentationTask: one class per pixel."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from segmentation_models_pytorch.losses import DiceLoss, FocalLoss, JaccardLoss
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import Accuracy, FBetaScore, JaccardIndex

from explora_geo.models.predictor import DensePredictor, Predictor
from explora_geo.models.vit import ViT
from explora_geo.trainers.classification import ClassTask, choose_loss

#: A value no mask holds, for losses that want to ignore one.
_NONE = -1000


class SegmentationTask(ClassTask):
    """Semantic segmentation with TorchGeo's arguments, and the paper's ways of tuning.

    The Jaccard index is the mean over classes (mIoU, table 8); TorchGeo's task logs the pixel-wise one. With
    the task `binary`, metrics are of class 1 alone: for the mIoU of two classes give `multiclass` with 2.
    """

    target_key = 'mask'

    def __init__(
        self,
        task: Literal['binary', 'multiclass'] = 'multiclass',
        num_classes: int | None = None,
        loss: Literal['ce', 'bce', 'jaccard', 'focal', 'dice'] | None = None,
        class_weights: Sequence[float] | None = None,
        ignore_index: int | None = None,
        head: Literal['linear', 'psp', 'upernet', 'dpt', 'fpn', 'pan'] = 'upernet',
        head_channels: int = 256,
        **kwargs: Any,
    ) -> None:
        """Initialize a SegmentationTask.

        Args:
            task: `binary` (mask 0 or 1) or `multiclass`.
            num_classes: Number of classes (multiclass only).
            loss: One of `ce`, `bce`, `jaccard`, `focal` or `dice`; `ce` or `bce` by task if None.
            class_weights: Weight of each class in the loss `ce`.
            ignore_index: Value of masks that neither loss nor metrics count.
            head: Decoder by name; see `DenseHead`.
            head_channels: Width of the decoder.
            **kwargs: Backbone, tuning and regularisation; see `TuningTask`.

        Raises:
            ValueError: If numbers, loss and task do not fit.
        """
        if task not in ('binary', 'multiclass'):
            raise ValueError(f'task must be binary or multiclass, got {task!r}')
        if task == 'multiclass' and (num_classes is None or num_classes < 2):
            raise ValueError(f'the task multiclass needs num_classes of at least 2, got {num_classes}')
        self.outputs, self.kind, self.ignored = (
            (num_classes or 1) if task == 'multiclass' else 1,
            task,
            ignore_index,
        )
        self.loss_name = choose_loss(loss, task)
        if self.loss_name == 'jaccard' and ignore_index is not None:
            raise ValueError('the loss jaccard cannot ignore pixels: use dice with ignore_index')
        super().__init__(**kwargs)
        if self.regularisation.mixes or self.regularisation.erasing:
            raise ValueError('mixup, cutmix and erasing are for one label per image, not for masks')

    def build(self, vit: ViT) -> Predictor:
        """The decoder by name."""
        hparams = self.hparams
        return DensePredictor(vit, self.outputs, hparams['head'], hparams['slots'], hparams['head_channels'])

    def configure_losses(self) -> None:
        """The loss by name."""
        ignored = _NONE if self.ignored is None else self.ignored
        match self.loss_name:
            case 'ce':
                self.criterion: nn.Module = self.cross_entropy(ignore_index=ignored)
            case 'bce':
                self.criterion = nn.BCEWithLogitsLoss()
            case 'jaccard':
                self.criterion = JaccardLoss(mode=self.kind)
            case 'focal':
                self.criterion = FocalLoss(mode=self.kind, ignore_index=ignored, normalized=True)
            case 'dice':
                self.criterion = DiceLoss(mode=self.kind, ignore_index=self.ignored)
            case other:
                raise ValueError(f'loss must be ce, bce, jaccard, focal or dice, got {other!r}')

    def metrics(self) -> MetricCollection:
        """Overall and average accuracy, mean Jaccard index (mIoU) and F1 over classes; binary: of class 1."""
        sizes: dict[str, Any] = {
            'task': self.kind,
            'num_classes': self.outputs if self.kind == 'multiclass' else None,
            'ignore_index': self.ignored,
        }
        return MetricCollection(
            {
                'OverallAccuracy': Accuracy(average='micro', **sizes),
                'AverageAccuracy': Accuracy(average='macro', **sizes),
                'JaccardIndex': JaccardIndex(average='macro', **sizes),
                'F1Score': FBetaScore(beta=1.0, average='macro', **sizes),
            }
        )

    def check_target(self, target: Tensor, image: Tensor) -> None:
        """A class in range for each pixel of the image."""
        wanted = (len(image), *image.shape[-2:])
        if tuple(target.shape) != wanted:
            raise ValueError(
                f'masks must have the size of their images, got masks of shape {tuple(target.shape)} for '
                f'images of shape {tuple(image.shape)}: bring both to one size'
            )
        counted = target if self.ignored is None else target[target != self.ignored]
        highest = self.outputs - 1 if self.kind == 'multiclass' else 1
        if counted.numel() and (counted.min() < 0 or counted.max() > highest):
            raise ValueError(
                f'masks must hold classes 0 to {highest}, got {int(counted.min())} to {int(counted.max())}: '
                'correct num_classes, or give ignore_index for pixels without a class'
            )

    def loss(self, scores: Tensor, target: Tensor) -> Tensor:
        """The loss of scores, shape (B, K, H, W); 0 where no pixel of the batch counts."""
        if self.ignored is not None and not (target != self.ignored).any():
            return 0 * scores.sum()
        if self.loss_name == 'bce':
            counted = (
                torch.ones_like(target, dtype=torch.bool) if self.ignored is None else target != self.ignored
            )
            found, wanted = scores.squeeze(1)[counted], target[counted].float()
            loss: Tensor = self.criterion(found, wanted)
        elif self.kind == 'binary':
            loss = self.criterion(scores, target.unsqueeze(1))
        else:
            loss = self.criterion(scores, target)
        return loss

    def predict(self, scores: Tensor) -> Tensor:
        """Probabilities, shape (B, K, H, W), or (B, H, W) for binary."""
        return scores.softmax(1) if self.kind == 'multiclass' else scores.sigmoid().squeeze(1)

    def decide(self, predicted: Tensor) -> Tensor:
        """The class of each pixel, shape (B, H, W)."""
        return predicted.argmax(1) if self.kind == 'multiclass' else (predicted >= 0.5).long()
