"""ClassificationTask: one class, or several labels, per image."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from segmentation_models_pytorch.losses import FocalLoss, JaccardLoss
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import Accuracy, AveragePrecision, FBetaScore, JaccardIndex

from explora_geo.models.pooling import Tokens
from explora_geo.models.predictor import ImagePredictor, Predictor
from explora_geo.models.vit import ViT
from explora_geo.trainers.tuning import TuningTask


class ClassTask(TuningTask):
    """Tuning to classes: what classification and segmentation share.

    Attributes:
        kind: `binary`, `multiclass` or `multilabel`.
        outputs: Classes, or labels, that the head predicts.
    """

    kind: str
    outputs: int

    def cross_entropy(self, **kwargs: Any) -> nn.Module:
        """The loss `ce`, with the weights of classes.

        Raises:
            ValueError: If there is not a weight for each class.
        """
        weights = self.hparams['class_weights']
        if weights is not None and len(weights) != self.outputs:
            raise ValueError(f'class_weights must have {self.outputs} values, got {len(weights)}')
        return nn.CrossEntropyLoss(
            None if weights is None else torch.as_tensor(weights, dtype=torch.float32),
            label_smoothing=self.regularisation.label_smoothing,
            **kwargs,
        )

    def check_classes(self, classes: Sequence[str]) -> None:
        """Refuse another number of classes than the data names."""
        if self.kind == 'multiclass' and classes and len(classes) != self.outputs:
            shown = ', '.join(classes[:12]) + (', …' if len(classes) > 12 else '')
            raise ValueError(
                f'num_classes is {self.outputs}, but the data has {len(classes)} classes ({shown}): correct '
                'num_classes, or fill class folders that are empty'
            )


def choose_loss(loss: str | None, task: str) -> str:
    """Name of the loss, by the task if none is given.

    Raises:
        ValueError: If loss and task do not fit.
    """
    name = loss or ('ce' if task == 'multiclass' else 'bce')
    if name in ('ce', 'bce') and (name == 'ce') != (task == 'multiclass'):
        raise ValueError(f'the loss {name} does not fit the task {task}: ce is for multiclass')
    return name


class ClassificationTask(ClassTask):
    """Image classification with TorchGeo's arguments and metrics, and the paper's ways of tuning."""

    def __init__(
        self,
        task: Literal['binary', 'multiclass', 'multilabel'] = 'multiclass',
        num_classes: int | None = None,
        num_labels: int | None = None,
        loss: Literal['ce', 'bce', 'jaccard', 'focal'] | None = None,
        class_weights: Sequence[float] | None = None,
        tokens: Tokens = 'avg',
        last_blocks: int = 1,
        **kwargs: Any,
    ) -> None:
        """Initialize a ClassificationTask.

        Args:
            task: One of `binary`, `multiclass` or `multilabel`.
            num_classes: Number of classes (multiclass only).
            num_labels: Number of labels (multilabel only).
            loss: One of `ce`, `bce`, `jaccard` or `focal`; `ce` for multiclass and `bce` else if None.
            class_weights: Weight of each class in the loss `ce`.
            tokens: What the head reads: `cls`, `avg` (mean patch) or `cls+avg`.
            last_blocks: Blocks whose class tokens it reads.
            **kwargs: Backbone, tuning and regularisation; see `TuningTask`.

        Raises:
            ValueError: If numbers, loss and task do not fit.
        """
        needed = {'multiclass': num_classes, 'multilabel': num_labels, 'binary': 1}
        if task not in needed:
            raise ValueError(f'task must be one of {", ".join(needed)}, got {task!r}')
        least = 2 if task == 'multiclass' else 1
        name = 'num_labels' if task == 'multilabel' else 'num_classes'
        outputs = needed[task]
        if outputs is None or outputs < least:
            raise ValueError(f'the task {task} needs {name} of at least {least}, got {outputs}')
        self.outputs, self.kind = outputs, task
        self.loss_name = choose_loss(loss, task)
        super().__init__(**kwargs)
        if self.regularisation.mixes and (task != 'multiclass' or self.loss_name != 'ce'):
            raise ValueError('mixup and cutmix need one class per image: task multiclass with the loss ce')

    def build(self, vit: ViT) -> Predictor:
        """A linear layer on pooled tokens."""
        hparams = self.hparams
        return ImagePredictor(vit, self.outputs, hparams['tokens'], hparams['slots'], hparams['last_blocks'])

    def configure_losses(self) -> None:
        """The loss by name."""
        match self.loss_name:
            case 'ce':
                self.criterion: nn.Module = self.cross_entropy()
            case 'bce':
                self.criterion = nn.BCEWithLogitsLoss()
            case 'jaccard':
                self.criterion = JaccardLoss(mode=self.kind)
            case 'focal':
                self.criterion = FocalLoss(mode=self.kind, normalized=True)
            case other:
                raise ValueError(f'loss must be ce, bce, jaccard or focal, got {other!r}')

    def metrics(self) -> MetricCollection:
        """TorchGeo's: overall and average accuracy, Jaccard index and F1; macro F1, and for labels mAP."""
        sizes: dict[str, Any] = {
            'task': self.kind,
            'num_classes': self.hparams['num_classes'],
            'num_labels': self.hparams['num_labels'],
        }
        found: dict[str, Any] = {
            'OverallAccuracy': Accuracy(average='micro', **sizes),
            'AverageAccuracy': Accuracy(average='macro', **sizes),
            'JaccardIndex': JaccardIndex(**sizes),
            'F1Score': FBetaScore(beta=1.0, average='micro', **sizes),
            'AverageF1Score': FBetaScore(beta=1.0, average='macro', **sizes),
        }
        if self.kind == 'multilabel':
            found['AveragePrecision'] = AveragePrecision(**sizes)
        return MetricCollection(found)

    def check_target(self, target: Tensor, image: Tensor) -> None:
        """One class in range per image, or a 0 or 1 per label."""
        wanted = (len(image), self.outputs) if self.kind == 'multilabel' else (len(image),)
        if tuple(target.shape) != wanted:
            raise ValueError(f'labels of the task {self.kind} have shape {wanted}, got {tuple(target.shape)}')
        highest = self.outputs - 1 if self.kind == 'multiclass' else 1
        if target.min() < 0 or target.max() > highest:
            raise ValueError(
                f'labels must be 0 to {highest}, got {int(target.min())} to {int(target.max())}: correct the '
                f'labels or {"num_classes" if self.kind == "multiclass" else "the task"}'
            )

    def augment(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mix images and classes, then erase."""
        if self.regularisation.mixes:
            image, target = self.regularisation.mix(image, target, self.outputs)
        return self.regularisation.erase(image), target

    def loss(self, scores: Tensor, target: Tensor) -> Tensor:
        """The loss of scores, shape (B, K)."""
        if self.kind == 'binary':
            scores = scores.squeeze(1)
        loss: Tensor = self.criterion(scores, target.float() if self.loss_name == 'bce' else target)
        return loss

    def predict(self, scores: Tensor) -> Tensor:
        """Probabilities, shape (B, K), or (B,) for binary."""
        if self.kind == 'multiclass':
            return scores.softmax(1)
        return scores.sigmoid().squeeze(1) if self.kind == 'binary' else scores.sigmoid()

    def decide(self, predicted: Tensor) -> Tensor:
        """The class of each image, or whether it has each label."""
        return predicted.argmax(1) if self.kind == 'multiclass' else (predicted >= 0.5).long()
