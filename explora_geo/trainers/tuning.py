"""Base for the downstream tasks: backbone, tuning, steps, metrics and files."""

import copy
import json
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchgeo.datasets import RGBBandsMissingError
from torchmetrics import MetricCollection

from explora_geo._compat import WeightsEnum, log_hparams
from explora_geo._version import __version__
from explora_geo.adaptation import ExPLoRAConfig, explora, merge_lora, trainable_summary
from explora_geo.checkpoints import load_backbone, write_state
from explora_geo.models import create_vit
from explora_geo.models.builders import DINOV2_SIZE, task_size
from explora_geo.models.matching import describe_data, describe_enlarging, match_data
from explora_geo.models.predictor import DensePredictor, ImagePredictor, Predictor
from explora_geo.models.readout import Slots
from explora_geo.trainers.optim import OptimConfig, optimization, training_length
from explora_geo.trainers.options import (
    ADAPTATIONS,
    OPTIMIZERS,
    BackboneOptions,
    Regularization,
    Tuning,
    restored,
)
from explora_geo.trainers.resume import ReproducibleTask

#: Format stated in the header of a tuned model's file.
FORMAT = 'explora_geo.task'
#: Hyper-parameters that only training needs; files of tuned models omit them.
TRAINING = ('weights', 'adapter', 'adaptation', 'optim', 'lr', 'regularization', 'grad_checkpointing')


class TuningTask(ReproducibleTask):
    """Pre-trained backbone and head, tuned on labels.

    Subclasses define what the head predicts. Checkpoints are complete: they load without the starting
    weights.

    Attributes:
        kind: `binary`, `multiclass`, `multilabel` or `regression`.
        outputs: Number of classes, labels or values that the head predicts.
        dense: Whether it predicts them for every pixel.
        target_key: Key of the target in a batch, `label` or `mask`.
        data: Description of the training data: bands, statistics, class names.
    """

    ignore: Sequence[str] | str | None = ('weights', 'adapter', 'regularisation')
    monitor = 'val_loss'
    model: Predictor
    kind: str
    outputs: int
    dense = False

    def __init__(
        self,
        model: str | None = None,
        weights: WeightsEnum | str | None = None,
        adapter: str | None = None,
        tuning: Tuning = 'lora',
        adaptation: ExPLoRAConfig | str | None = None,
        optim: OptimConfig | None = None,
        lr: float | None = None,
        regularization: Regularization | None = None,
        slots: Slots = 'mean',
        statistics: Literal['model', 'data'] | None = None,
        **backbone: Any,
    ) -> None:
        """Initialize a TuningTask.

        Args:
            model: timm name of the backbone; if None, as stated by the files.
            weights: Plain or merged backbone: an entry, a file, `timm/<name>` or `hf:<owner>/<name>`.
            adapter: Adapter file made on these weights; it is merged before tuning.
            tuning: What to train besides the head: nothing, LoRA-r8 on Q and V of every block (the paper's
                choice), everything, or as in ExPLoRA the last block, LoRA elsewhere, norms and class token.
            adaptation: Custom choice of what to train, as a configuration or in the paper's notation.
            optim: Optimizer and schedule; if None, those of *tuning*.
            lr: Learning rate, not scaled by the batch size: short for `optim` with `lr_scaling: none`.
            regularization: Drop path, label smoothing, mixup, cutmix, erasing.
            slots: Reduction of channel groups or frames in the head: `mean` or `concat`.
            statistics: Normalize by the mean and standard deviation stated by the weights (`model`) or by
                those of the `data`. If None, use those of the weights, and reject data that were given
                others.
            **backbone: Bands, sizes, tokenizer and memory; see `BackboneOptions`.

        Raises:
            ValueError: If a name or value is unknown, or the weights do not fit.
            FileNotFoundError: If a file does not exist.
        """
        if tuning not in ADAPTATIONS:
            raise ValueError(f'tuning must be one of {", ".join(ADAPTATIONS)}, got {tuning!r}')
        if adapter is not None and weights is None:
            raise ValueError(f'adapter {adapter} needs the weights it was trained on: pass weights, too')
        self.target_key = 'mask' if self.dense else 'label'
        self._weights, self._adapter = weights, adapter
        former = backbone.pop('regularisation', None)
        if former is not None:
            warnings.warn('regularisation is deprecated, use regularization', FutureWarning, stacklevel=4)
        self.options = BackboneOptions(**backbone)
        self.config = ExPLoRAConfig.create(ADAPTATIONS[tuning] if adaptation is None else adaptation)
        self.optim = restored(OptimConfig, optim) or OPTIMIZERS[tuning]
        if lr is not None:
            self.optim = OptimConfig(**{**vars(self.optim), 'base_lr': lr, 'lr_scaling': 'none'})
        self.regularization = restored(Regularization, regularization or former) or Regularization()
        if self.dense and self.regularization.erasing:
            raise ValueError('erasing supports only image labels, not masks')
        self.data: dict[str, Any] = {}
        self._restored = False
        super().__init__()
        tokenizer = self.model.backbone.patch_embed
        weighted = self.hparams.get('class_weights')
        # Plain values only: a Lightning checkpoint must load with weights_only=True.
        plain: dict[str, Any] = {
            'grad_checkpointing': self.options.grad_checkpointing,
            'model': self.model.backbone.name,
            'adaptation': self.config.to_dict(),
            'optim': dict(vars(self.optim)),
            'lr': None,
            'regularization': dict(vars(self.regularization)),
            'bands': list(tokenizer.bands),
            'img_size': tokenizer.grid_size[0] * tokenizer.patch_size,
            'patch_size': tokenizer.patch_size,
            'tokenizer': tokenizer.kind,
            'tokenizer_options': dict(tokenizer.options),
        }
        log_hparams(
            self, plain if weighted is None else {**plain, 'class_weights': list(map(float, weighted))}
        )

    @abstractmethod
    def metrics(self) -> MetricCollection:
        """Return the metrics of one split."""

    @abstractmethod
    def loss(self, scores: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar."""

    @abstractmethod
    def predict(self, scores: Tensor) -> Tensor:
        """Return predictions from scores: probabilities or values."""

    def decide(self, predicted: Tensor) -> Tensor:
        """Return the classes or values of predictions, in the shape of targets; by default, unchanged."""
        return predicted

    def check_classes(self, classes: Sequence[str]) -> None:
        """Reject data whose classes differ from those of the head; by default, accept all."""

    def check_target(self, target: Tensor, image: Tensor) -> None:
        """Reject targets that do not fit the images.

        Raises:
            ValueError: If their shape is not (B, H, W) for pixels, (B, K) for several labels or values per
                image, or (B,) otherwise.
        """
        several = self.kind == 'multilabel' or (self.kind == 'regression' and target.ndim + self.outputs > 2)
        size = image.shape[-2:] if self.dense else (self.outputs,) if several else ()
        wanted, given = (len(image), *size), tuple(target.shape)
        if given != wanted:
            raise ValueError(
                f'{self.target_key}s for task {self.kind} must have shape {wanted}, got '
                f'{self.target_key}s of shape {given} for images of shape {tuple(image.shape)}'
            )

    def configure_models(self) -> None:
        """Build the backbone, load weights and adapter, adapt it and add the head, in this order."""
        options = {k: v for k, v in vars(self.options).items() if v is not None}
        checkpointing = options.pop('grad_checkpointing')
        options['drop_path_rate'] = (
            0.0 if self.config == ADAPTATIONS['linear'] else self.regularization.drop_path
        )
        hparams, name = self.hparams, self.hparams['model']
        if self._weights is not None:
            vit = load_backbone(name, self._weights, self._adapter, largest=DINOV2_SIZE, **options)
        elif name is None:
            raise ValueError('weights and model are missing: pass weights, or model to load a checkpoint')
        else:
            size = options.pop('img_size', None) or task_size(name, options.get('patch_size'))
            vit = create_vit(name, img_size=size, **options)
        vit.grad_checkpointing = checkpointing
        explora(vit, self.config)
        if self.dense:
            head = hparams['head'], hparams['slots'], hparams['head_channels']
            self.model = DensePredictor(vit, self.outputs, *head)
        else:
            head = hparams['tokens'], hparams['slots'], hparams['last_blocks']
            self.model = ImagePredictor(vit, self.outputs, *head)
        self.model.train(self.training)  # puts a frozen backbone into evaluation mode

    def configure_metrics(self) -> None:
        """Create the same metrics for each split."""
        metrics = self.metrics()
        self.train_metrics, self.val_metrics, self.test_metrics = (
            metrics.clone(prefix=f'{split}_') for split in ('train', 'val', 'test')
        )

    def forward(self, image: Tensor, timestamps: Tensor | None = None) -> Any:
        """Return scores of images, shape (B, C, H, W) or as the tokenizer requires."""
        return self.model(image, timestamps)

    def configure_optimizers(self) -> Any:
        """Set up AdamW over the trainable parameters, with warm-up and cosine decay per step."""
        return optimization(self.trainer, self.model, self.optim, training_length(self.trainer))

    def setup(self, stage: str) -> None:
        """Match the data to the backbone, and silence Lightning's warning about a frozen one.

        Raises:
            ValueError: If the data lack a band, or contradict the normalization of the weights.
        """
        super().setup(stage)
        datamodule: Any = getattr(self.trainer, 'datamodule', None)
        match_data(datamodule, self.model.backbone, self.hparams['statistics'])
        if stage == 'fit' and (text := self.enlarging(datamodule)):
            rank_zero_info(text)
        if self.model.frozen:  # as intended
            warnings.filterwarnings('ignore', message=r'Found \d+ module\(s\) in eval mode')

    def enlarging(self, datamodule: Any) -> str:
        """Describe by how much tiles are enlarged to the backbone's input size; empty if they are not."""
        return describe_enlarging(datamodule, self.model.backbone.patch_embed.img_size)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of an augmented batch of `image` and the target."""
        image, target = self._read(batch)
        changed, wanted = self.regularization.apply(image, target, self.outputs)
        scores = self(changed, batch.get('timestamps'))
        loss = self.log_step(self.loss(scores, wanted), batch)
        if wanted is target:  # mixed images have no single class to score
            self._score(self.train_metrics, scores.detach(), target)
        return loss

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Log loss and metrics of a validation batch."""
        self._evaluate(batch, 'val', self.val_metrics)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Log loss and metrics of a test batch."""
        self._evaluate(batch, 'test', self.test_metrics)

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return predictions for a batch: probabilities or values."""
        return self.predict(self(batch['image'], batch.get('timestamps')))

    def _read(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return image and checked target of a batch."""
        if self.target_key not in batch:
            raise ValueError(
                f'{type(self).__name__} needs {self.target_key!r} in every batch, got keys '
                f'{", ".join(batch)}: use labeled images'
            )
        image, target = batch['image'], batch[self.target_key]
        self.check_target(target, image)
        return image, target

    def _evaluate(self, batch: Mapping[str, Any], split: str, metrics: MetricCollection) -> None:
        image, target = self._read(batch)
        scores = self(image, batch.get('timestamps'))
        loss, size = self.loss(scores, target), len(image)
        self.log(f'{split}_loss', loss, batch_size=size, prog_bar=split == 'val', sync_dist=True)
        self._score(metrics, scores, target)

    def _score(self, metrics: MetricCollection, scores: Tensor, target: Tensor) -> None:
        metrics.update(self.predict(scores), target)
        self.log_dict(metrics, batch_size=len(target), on_step=False, on_epoch=True)

    def on_fit_start(self) -> None:
        """Record a description of the data for later users of the model.

        Raises:
            ValueError: If the backbone would stay random.
        """
        super().on_fit_start()
        if self._weights is None and not self.config.full and not self._restored:
            raise ValueError(
                'tuning needs a pre-trained backbone: pass weights, or set tuning to full to train all of it'
            )
        self.data = describe_data(getattr(self.trainer, 'datamodule', None), self.hparams['bands'])
        self.check_classes(self.data.get('classes', []))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the task's name and data description."""
        super().on_save_checkpoint(checkpoint)
        checkpoint['explora_geo'] = {'task': type(self).__name__, 'data': self.data}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the data description."""
        super().on_load_checkpoint(checkpoint)
        self.data = checkpoint.get('explora_geo', {}).get('data', {})
        self._restored = True

    def write_weights(self, folder: Path) -> dict[str, Any]:
        """Write `model.safetensors` and return the task's report entries."""
        save_task(folder / 'model.safetensors', self)
        head = sum(p.numel() for p in self.model.head.parameters())
        return {
            'task': type(self).__name__,
            'backbone': self.hparams['model'],
            'tuning': self.hparams['tuning'],
            'adaptation': self.config.notation(),
            'config': self.config.to_dict(),
            'optim': dict(vars(self.optim)),
            'trainable': {**trainable_summary(self.model.backbone), 'head': head},
        }

    @torch.no_grad()
    def pictures(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Draw the first validation image with target and prediction, using the data module's `plot`."""
        datamodule: Any = getattr(self.trainer, 'datamodule', None)
        if self.trainer.sanity_checking or not hasattr(datamodule, 'plot'):
            return {}
        first = {k: v[:1] for k, v in batch.items()}
        predicted = self.decide(self.predict(self(first['image'], first.get('timestamps'))))
        shown = first['image'][0].float().cpu()
        if 'mean' in self.data and 'std' in self.data:
            mean, std = (torch.tensor(self.data[name]).view(-1, 1, 1) for name in ('mean', 'std'))
            shown = shown * std + mean
        target = first[self.target_key][0].cpu()
        try:
            figure = datamodule.plot(
                {'image': shown, self.target_key: target, 'prediction': predicted[0].cpu()}
            )
        except RGBBandsMissingError:  # TorchGeo's data sets plot true color or nothing
            return {}
        return {} if figure is None else {'validation': figure}


def save_task(path: str | Path, task: TuningTask) -> None:
    """Write a tuned model with LoRA merged as `.safetensors`, atomically."""
    model = merge_lora(copy.deepcopy(task.model).cpu())
    hparams = {k: v for k, v in task.hparams.items() if k not in TRAINING and k[0] != '_'}
    header = {
        'task': type(task).__name__,
        'hparams': {**hparams, 'tuning': 'linear'},
        'data': task.data,
        'version': __version__,
    }
    write_state(path, model.state_dict(), {'format': FORMAT, 'task': json.dumps(header)})
