"""RegressionTask: numbers per image (yield) or per pixel (height)."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection, R2Score

from explora_geo.models.pooling import Tokens
from explora_geo.models.predictor import DensePredictor, ImagePredictor, Predictor
from explora_geo.models.vit import ViT
from explora_geo.trainers.tuning import TuningTask


class _R2Score(R2Score):
    """The coefficient of determination; NaN of fewer than two targets."""

    def compute(self) -> Tensor:
        """The coefficient of all targets so far."""
        return super().compute() if self.total > 1 else torch.full_like(self.sum_error, torch.nan)


class RegressionTask(TuningTask):
    """Regression with TorchGeo's arguments and metrics, of images or, with a dense head, of pixels.

    Targets that are NaN (no measurement) are left out of loss and metrics.
    """

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
            num_outputs: Numbers per image; pixels have one.
            loss: `mse` or `mae`.
            target: `label` for numbers per image, `mask` for a number per pixel.
            head: Decoder by name, for masks; see `DenseHead`.
            head_channels: Width of the decoder.
            tokens: What the head reads, for labels: `cls`, `avg` (mean patch) or `cls+avg`.
            last_blocks: Blocks whose class tokens it reads.
            **kwargs: Backbone, tuning and regularisation; see `TuningTask`.

        Raises:
            ValueError: If a value is unknown or does not fit.
        """
        if loss not in ('mse', 'mae'):
            raise ValueError(f'loss must be mse or mae, got {loss!r}')
        if target not in ('label', 'mask'):
            raise ValueError(f'target must be label or mask, got {target!r}')
        if num_outputs < 1 or (target == 'mask' and num_outputs > 1):
            raise ValueError(f'num_outputs must be at least 1, and 1 for masks, got {num_outputs}')
        self.dense, self.outputs = target == 'mask', num_outputs
        super().__init__(**kwargs)
        self.target_key = target
        if self.regularisation.mixes or (self.dense and self.regularisation.erasing):
            raise ValueError('mixup and cutmix are for classes, and erasing for one label per image')

    def build(self, vit: ViT) -> Predictor:
        """A linear layer on pooled tokens, or the decoder by name."""
        hparams = self.hparams
        if self.dense:
            return DensePredictor(vit, 1, hparams['head'], hparams['slots'], hparams['head_channels'])
        return ImagePredictor(vit, self.outputs, hparams['tokens'], hparams['slots'], hparams['last_blocks'])

    def configure_losses(self) -> None:
        """The loss by name."""
        self.criterion: nn.Module = nn.MSELoss() if self.hparams['loss'] == 'mse' else nn.L1Loss()

    def metrics(self) -> MetricCollection:
        """TorchGeo's RMSE, MSE and MAE, and the coefficient of determination."""
        return MetricCollection(
            {
                'RMSE': MeanSquaredError(squared=False),
                'MSE': MeanSquaredError(),
                'MAE': MeanAbsoluteError(),
                'R2Score': _R2Score(),
            }
        )

    def check_target(self, target: Tensor, image: Tensor) -> None:
        """One number for each output of each image, or for each pixel."""
        if self.dense:
            wanted: tuple[int, ...] = (len(image), *image.shape[-2:])
        else:
            wanted = (len(image),) if target.ndim == 1 and self.outputs == 1 else (len(image), self.outputs)
        if tuple(target.shape) != wanted:
            raise ValueError(f'targets must have shape {wanted}, got {tuple(target.shape)}')
        if torch.isinf(target).any():
            raise ValueError('targets hold infinite values: mark what was not measured as NaN')

    def loss(self, scores: Tensor, target: Tensor) -> Tensor:
        """The loss over measured targets; zero where a batch has none."""
        found, wanted = self._measured(self.predict(scores), target)
        loss: Tensor = self.criterion(found, wanted) if len(wanted) else 0 * scores.sum()
        return loss

    def predict(self, scores: Tensor) -> Tensor:
        """Values with the shape of targets: (B, H, W), (B,) or (B, outputs)."""
        return scores.squeeze(1) if self.dense or self.outputs == 1 else scores

    def decide(self, predicted: Tensor) -> Tensor:
        """The values themselves."""
        return predicted

    def _score(self, metrics: MetricCollection, scores: Tensor, target: Tensor) -> None:
        found, wanted = self._measured(self.predict(scores), target)
        if len(wanted):
            metrics.update(found, wanted)
        # Processes without a measured target log, too: the others wait for them.
        self.log_dict(metrics, batch_size=len(target), on_step=False, on_epoch=True)

    @staticmethod
    def _measured(predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        target = target.view_as(predicted)
        known = torch.isfinite(target)
        # Targets keep their digits where autocast computes in half precision.
        dtype = torch.promote_types(predicted.dtype, torch.float32)
        return predicted[known].to(dtype), target[known].to(dtype)
