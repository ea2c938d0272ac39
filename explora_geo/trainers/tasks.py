"""Tasks for classification, segmentation and regression, and loading of tuned models."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from segmentation_models_pytorch.losses import DiceLoss, FocalLoss, JaccardLoss
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection, R2Score
from torchmetrics.classification import Accuracy, AveragePrecision, FBetaScore, JaccardIndex

from explora_geo.checkpoints import read_state
from explora_geo.checkpoints.facts import check_sizes
from explora_geo.checkpoints.files import check_exact, check_storage, read_checkpoint, unnest
from explora_geo.models.readout import Tokens
from explora_geo.trainers.tuning import FORMAT, TRAINING, TuningTask


class ClassTask(TuningTask):
    """Tuning on classes: the common base of classification and segmentation."""

    losses: tuple[str, ...] = ('ce', 'bce', 'jaccard', 'focal')
    ignored: int | None = None

    def __init__(self, loss: str | None, **kwargs: Any) -> None:
        """Initialize a ClassTask with one of `losses`; None selects one by the kind of task."""
        one = self.kind == 'multiclass'
        self.loss_name = loss or ('ce' if one else 'bce')
        if self.loss_name not in self.losses:
            named = f'{", ".join(self.losses[:-1])} or {self.losses[-1]}'
            raise ValueError(f'loss must be {named}, got {loss!r}')
        if self.loss_name in ('ce', 'bce') and (self.loss_name == 'ce') != one:
            raise ValueError(f'loss {loss} does not match task {self.kind}: use ce for multiclass, else bce')
        super().__init__(**kwargs)
        if self.regularization.mixes and (self.dense or self.loss_name != 'ce'):
            raise ValueError('mixup and cutmix need one class per image (task multiclass) and loss ce')

    def configure_losses(self) -> None:
        """Create the loss by name.

        Raises:
            ValueError: If the number of class weights differs from the number of classes.
        """
        weights, ignored = self.hparams['class_weights'], self.ignored
        if weights is not None and self.loss_name == 'ce' and len(weights) != self.outputs:
            raise ValueError(f'class_weights must have {self.outputs} values, got {len(weights)}')
        smooth = self.regularization.label_smoothing
        self.criterion: nn.Module
        match self.loss_name:
            case 'ce':
                weight = None if weights is None else torch.as_tensor(weights, dtype=torch.float32)
                # Masks hold no class below 0, so -1 ignores nothing.
                ignore_index = -1 if ignored is None else ignored
                self.criterion = nn.CrossEntropyLoss(weight, None, ignore_index, label_smoothing=smooth)
            case 'bce':
                self.criterion = nn.BCEWithLogitsLoss()
            case 'jaccard':
                self.criterion = JaccardLoss(mode=self.kind)
            case 'focal':
                self.criterion = FocalLoss(mode=self.kind, ignore_index=ignored, normalized=True)
            case _:
                self.criterion = DiceLoss(mode=self.kind, ignore_index=ignored)

    def metrics(self) -> MetricCollection:
        """Return TorchGeo's overall and average accuracy, Jaccard index and F1; images add macro F1 and mAP.

        For pixels, all but the overall accuracy are means over classes, or of class 1 if binary.
        """
        sizes: dict[str, Any] = {
            'task': self.kind,
            'num_classes': self.outputs if self.kind == 'multiclass' else None,
            'num_labels': self.outputs if self.kind == 'multilabel' else None,
            'ignore_index': self.ignored,
        }
        found: dict[str, Any] = {
            'OverallAccuracy': Accuracy(average='micro', **sizes),
            'AverageAccuracy': Accuracy(average='macro', **sizes),
            'JaccardIndex': JaccardIndex(**sizes),
            'F1Score': FBetaScore(beta=1.0, average='macro' if self.dense else 'micro', **sizes),
        }
        if not self.dense:
            found['AverageF1Score'] = FBetaScore(beta=1.0, average='macro', **sizes)
        if self.kind == 'multilabel':
            found['AveragePrecision'] = AveragePrecision(**sizes)
        return MetricCollection(found)

    def check_classes(self, classes: Sequence[str]) -> None:
        """Raise ValueError if the data name a different number of classes."""
        if self.kind == 'multiclass' and classes and len(classes) != self.outputs:
            shown = ', '.join(classes[:12]) + (', …' if len(classes) > 12 else '')
            raise ValueError(
                f'num_classes is {self.outputs}, but the data has {len(classes)} classes ({shown}): correct '
                'num_classes, or add images to empty class folders'
            )

    def check_target(self, target: Tensor, image: Tensor) -> None:
        """Raise ValueError if targets have the wrong shape or hold classes out of range."""
        super().check_target(target, image)
        counted = target if self.ignored is None else target[target != self.ignored]
        highest = self.outputs - 1 if self.kind == 'multiclass' else 1
        if counted.numel() and (counted.min() < 0 or counted.max() > highest):
            remedy = 'correct num_classes, or set ignore_index for pixels without a class'
            if not self.dense:
                remedy = f'correct the labels or {"num_classes" if self.kind == "multiclass" else "the task"}'
            raise ValueError(
                f'{self.target_key}s must be between 0 and {highest}, got {int(counted.min())} to '
                f'{int(counted.max())}: {remedy}'
            )

    def loss(self, scores: Tensor, target: Tensor) -> Tensor:
        """Return the loss of scores, shape (B, K) or (B, K, H, W), or 0 if no pixel of the batch counts."""
        if self.kind == 'binary':
            scores = scores.squeeze(1)
        if self.ignored is not None:
            counted = target != self.ignored
            if not counted.any():
                return 0 * scores.sum()
            if self.loss_name == 'bce':
                scores, target = scores[counted], target[counted]
        loss: Tensor = self.criterion(scores, target.float() if self.loss_name == 'bce' else target)
        return loss

    def predict(self, scores: Tensor) -> Tensor:
        """Return probabilities, shape (B, K) or (B, K, H, W); for binary those of class 1, without K."""
        if self.kind == 'multiclass':
            return scores.softmax(1)
        return scores.sigmoid().squeeze(1) if self.kind == 'binary' else scores.sigmoid()

    def decide(self, predicted: Tensor) -> Tensor:
        """Return the class of each image or pixel, or whether it has each label."""
        return predicted.argmax(1) if self.kind == 'multiclass' else (predicted >= 0.5).long()


class ClassificationTask(ClassTask):
    """Image classification with TorchGeo's arguments and metrics, and the paper's tuning methods."""

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
            loss: One of `ce`, `bce`, `jaccard` or `focal`; if None, `ce` for multiclass and `bce` otherwise.
            class_weights: Weight of each class in the loss `ce`.
            tokens: Input of the head: `cls`, `avg` (mean patch) or `cls+avg`.
            last_blocks: Number of last blocks whose class tokens the head reads.
            **kwargs: Backbone, tuning and regularization; see `TuningTask`.

        Raises:
            ValueError: If class counts, loss and task are incompatible.
        """
        needed = {'multiclass': num_classes, 'multilabel': num_labels, 'binary': 1}
        if task not in needed:
            raise ValueError(f'task must be one of {", ".join(needed)}, got {task!r}')
        least = 2 if task == 'multiclass' else 1
        name = 'num_labels' if task == 'multilabel' else 'num_classes'
        outputs = needed[task]
        if outputs is None or outputs < least:
            raise ValueError(f'{name} must be at least {least} for task {task}, got {outputs}')
        self.outputs, self.kind = outputs, task
        super().__init__(loss, **kwargs)


class SegmentationTask(ClassTask):
    """Semantic segmentation with TorchGeo's arguments, and the paper's tuning methods.

    The Jaccard index is the mean over classes (mIoU, table 8); TorchGeo's task logs the pixel-wise one. For
    the task `binary`, metrics cover class 1 only: for the mIoU of two classes, use `multiclass` with 2.
    """

    dense = True
    losses = (*ClassTask.losses, 'dice')

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
            loss: One of `ce`, `bce`, `jaccard`, `focal` or `dice`; if None, `ce` or `bce` by task.
            class_weights: Weight of each class in the loss `ce`.
            ignore_index: Mask value excluded from loss and metrics.
            head: Decoder by name; see `DenseHead`.
            head_channels: Width of the decoder.
            **kwargs: Backbone, tuning and regularization; see `TuningTask`.

        Raises:
            ValueError: If class counts, loss and task are incompatible.
        """
        if task not in ('binary', 'multiclass'):
            raise ValueError(f'task must be binary or multiclass, got {task!r}')
        if task == 'multiclass' and (num_classes is None or num_classes < 2):
            raise ValueError(f'num_classes must be at least 2 for task multiclass, got {num_classes}')
        if loss == 'jaccard' and ignore_index is not None:
            raise ValueError('loss jaccard does not support ignore_index: use loss dice')
        self.outputs, self.kind = (num_classes or 1) if task == 'multiclass' else 1, task
        self.ignored = ignore_index
        super().__init__(loss, **kwargs)


class _R2Score(R2Score):
    """Coefficient of determination; NaN for fewer than two targets."""

    def compute(self) -> Tensor:
        """Return the coefficient over all targets so far."""
        return super().compute() if self.total > 1 else torch.full_like(self.sum_error, torch.nan)


class RegressionTask(TuningTask):
    """Regression with TorchGeo's arguments and metrics, per image or, with a dense head, per pixel.

    NaN targets (no measurement) are excluded from loss and metrics.
    """

    kind = 'regression'

    def __init__(
        self,
        num_outputs: int = 1,
        loss: Literal['mse', 'mae'] = 'mse',
        target: Literal['label', 'mask'] = 'label',
        head: Literal['linear', 'psp', 'upernet', 'dpt', 'fpn', 'pan'] = 'linear',
        head_channels: int = 256,
        tokens: Tokens = 'avg',
        last_blocks: int = 1,
        **kwargs: Any,
    ) -> None:
        """Initialize a RegressionTask.

        Args:
            num_outputs: Values per image; pixels have one.
            loss: `mse` or `mae`.
            target: `label` for values per image, `mask` for one value per pixel.
            head: Decoder by name, for masks; see `DenseHead`.
            head_channels: Width of the decoder.
            tokens: Input of the head, for labels: `cls`, `avg` (mean patch) or `cls+avg`.
            last_blocks: Number of last blocks whose class tokens the head reads.
            **kwargs: Backbone, tuning and regularization; see `TuningTask`.

        Raises:
            ValueError: If a value is unknown or does not fit.
        """
        if loss not in ('mse', 'mae'):
            raise ValueError(f'loss must be mse or mae, got {loss!r}')
        if target not in ('label', 'mask'):
            raise ValueError(f'target must be label or mask, got {target!r}')
        if num_outputs < 1 or (target == 'mask' and num_outputs > 1):
            raise ValueError(f'num_outputs must be at least 1, and exactly 1 for masks, got {num_outputs}')
        self.dense, self.outputs = target == 'mask', num_outputs
        super().__init__(**kwargs)
        if self.regularization.mixes:
            raise ValueError('mixup and cutmix support only classes, not regression targets')

    def configure_losses(self) -> None:
        """Create the loss by name."""
        self.criterion: nn.Module = nn.MSELoss() if self.hparams['loss'] == 'mse' else nn.L1Loss()

    def metrics(self) -> MetricCollection:
        """Return TorchGeo's RMSE, MSE and MAE, and the coefficient of determination."""
        return MetricCollection(
            {
                'RMSE': MeanSquaredError(squared=False),
                'MSE': MeanSquaredError(),
                'MAE': MeanAbsoluteError(),
                'R2Score': _R2Score(),
            }
        )

    def check_target(self, target: Tensor, image: Tensor) -> None:
        """Raise ValueError if targets have the wrong shape or infinite values."""
        super().check_target(target, image)
        if torch.isinf(target).any():
            raise ValueError('targets contain infinite values: set missing measurements to NaN')

    def loss(self, scores: Tensor, target: Tensor) -> Tensor:
        """Return the loss over measured targets, or zero if the batch has none."""
        found, wanted = self._measured(scores, target)
        loss: Tensor = self.criterion(found, wanted) if len(wanted) else 0 * scores.sum()
        return loss

    def predict(self, scores: Tensor) -> Tensor:
        """Return values in the shape of targets: (B, H, W), (B,) or (B, outputs)."""
        return scores.squeeze(1) if self.dense or self.outputs == 1 else scores

    def _score(self, metrics: MetricCollection, scores: Tensor, target: Tensor) -> None:
        found, wanted = self._measured(scores, target)
        if len(wanted):
            metrics.update(found, wanted)
        # Processes without measured targets must log, too: the others wait for them.
        self.log_dict(metrics, batch_size=len(target), on_step=False, on_epoch=True)

    def _measured(self, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        predicted = self.predict(scores)
        target = target.view_as(predicted)
        known = torch.isfinite(target)
        # Targets keep full precision where autocast uses half precision.
        dtype = torch.promote_types(predicted.dtype, torch.float32)
        return predicted[known].to(dtype), target[known].to(dtype)


#: Names of data entries in older files.
_FORMER = {'colours': 'colors'}
_TASKS = {task.__name__: task for task in (ClassificationTask, SegmentationTask, RegressionTask)}


def load_task(path: str | Path) -> TuningTask:
    """Load a tuned model from its file or from a Lightning checkpoint.

    Args:
        path: `model.safetensors` of a run, or a `.ckpt` file.

    Returns:
        The task in evaluation mode; `task.data` holds bands, statistics and class names.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is damaged, not a tuned model, or does not match its own header.
    """
    path = Path(path)
    whole = path.suffix == '.ckpt'
    content: Any = read_checkpoint(path, mmap=True) if whole else read_state(path)
    if not whole and content[1].get('format') != FORMAT:
        raise ValueError(
            f'{path}: not a tuned model, format {FORMAT} is missing from its header; pass model.safetensors '
            'or a checkpoint from a run of ClassificationTask, SegmentationTask or RegressionTask'
        )
    try:
        header = content['explora_geo'] if whole else json.loads(content[1]['task'])
        kind, data = header['task'], dict(header['data'])
        hparams = content['hyper_parameters'] if whole else header['hparams']
        left_out = ('weights', 'adapter') if whole else TRAINING
        # Lightning's own reader would call any instantiator that the file names.
        hparams = {k: v for k, v in hparams.items() if k not in left_out and k[0] != '_'}
        state = dict(content['state_dict']) if whole else content[0]
        data = {_FORMER.get(k, k): v for k, v in data.items()}
        for name in ('bands', 'mean', 'std', 'classes', 'colors'):
            if not isinstance(data.get(name, []), list):
                raise ValueError(f'{name} is not a list')
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error
    if whole:
        check_storage(unnest(state, path), path)
    for device in ('meta', 'cpu'):  # meta takes no memory
        task = _build(path, kind, hparams, device)
        module = task if whole else task.model
        if device == 'meta':
            check_exact(state, module.state_dict(), path)
    module.load_state_dict(state)
    task.data = data
    return task.eval()


def _build(path: Path, kind: Any, hparams: dict[str, Any], device: str) -> TuningTask:
    """Build the task that a file describes."""
    try:
        if kind not in _TASKS:
            raise ValueError(f'unknown task {kind!r}')
        check_sizes(hparams['img_size'], hparams['patch_size'])
        with torch.device(device):
            return _TASKS[kind](**hparams)
    except Exception as error:  # invalid tasks fail here in many ways
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = f'{error} is missing' if isinstance(error, KeyError) else str(error) or type(error).__name__
    return ValueError(f'{path}: not a tuned model, or incomplete or damaged ({reason.splitlines()[0]})')
