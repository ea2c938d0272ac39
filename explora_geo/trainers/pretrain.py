"""ExPLoRATask: continue self-supervised pre-training of an adapted backbone."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from explora_geo._compat import WeightsEnum, log_hparams
from explora_geo.adaptation import ExPLoRAConfig, explora, hold_frozen, trainable_names, trainable_summary
from explora_geo.bands import true_color_bands
from explora_geo.checkpoints import BackboneWeights, load_weights, model_metadata, save_adapter, write_state
from explora_geo.checkpoints.adapter import frozen_sha256
from explora_geo.devices import compile_blocks
from explora_geo.models import create_vit
from explora_geo.models.builders import task_size
from explora_geo.models.matching import describe_enlarging, match_data, normalization_of, tile_side
from explora_geo.models.vit import ViT
from explora_geo.objectives import Objective, objective_class
from explora_geo.trainers.artifacts import two_rows
from explora_geo.trainers.guard import FeatureMonitor, GuardConfig
from explora_geo.trainers.optim import OptimConfig, optimization, training_length
from explora_geo.trainers.options import PretrainOptions, restored
from explora_geo.trainers.presets import choose
from explora_geo.trainers.resume import ReproducibleTask

GUARD = GuardConfig()


class ExPLoRATask(ReproducibleTask):
    """ExPLoRA pre-training (paper, section 4): weights → adaptation → the objective, without labels.

    Training needs only `batch['image']`. With labeled validation batches, the task also reports the k-NN or
    linear-probe accuracy of the features next to that of the starting weights; without labels, their
    effective rank.

    Attributes:
        recipe_report: Sentence stating which preset applies and which arguments override it.
        stopped: Why the run was stopped as collapsed, or empty.
    """

    ignore: Sequence[str] | str | None = ('objective', 'weights')
    stopped = ''
    monitor = 'val_loss'

    def __init__(
        self,
        model: str = 'vit_base_patch16_224',
        weights: WeightsEnum | str | None = None,
        adaptation: ExPLoRAConfig | str | None = None,
        objective: Callable[[ViT], Objective] | None = None,
        optim: OptimConfig | None = None,
        preset: Literal['paper-workshop', 'paper-released', 'paper-sentinel', 'paper-temporal']
        | None = 'paper-workshop',
        monitor_features: Literal['knn', 'linear', 'none'] = 'knn',
        guard: GuardConfig | None = GUARD,
        **backbone: Any,
    ) -> None:
        """Initialize an ExPLoRATask.

        Args:
            model: timm name of the backbone; see `create_vit`.
            weights: Starting weights: a `WeightsEnum`, a file, or `timm/<name>` for timm's hub; None
                starts from random weights, which requires full pre-training.
            adaptation: What to train: a configuration; the paper's notation, whose blocks and rank replace
                the preset's; `full` for everything; or None for the preset's.
            objective: Class (or other callable) that builds the objective around the backbone; if None,
                the one named by the notation (M-ExPLoRA, D-ExPLoRA) or else by the weights.
            optim: Optimizer and schedule, replacing the preset's as a whole; None keeps the preset's.
            preset: Published recipe that fills in missing arguments, also those of MAE and DINOv2. With None
                or an objective of another class, the defaults for short runs apply. Set batch size and length
                of the recipe (in `PRESETS`) in trainer and datamodule.
            monitor_features: Probe that scores the features of a labeled validation set.
            guard: Bounds for stopping a collapsed run and restoring its best state; None never stops.
            **backbone: Bands, sizes, tokenizer, memory and data types; see `PretrainOptions`.

        Raises:
            ValueError: If a name, notation, objective or the weights do not fit, or no objective is named.
            FileNotFoundError: If the weights file does not exist.
        """
        choice = choose(preset, adaptation, objective, weights)
        self.options = PretrainOptions(**backbone)
        rate = self.options.drop_path_rate
        drop_path = choice.recipe.drop_path_rate if rate is None else rate
        kind = objective_class(choice.factory)
        self._backbone_options = {**(kind.backbone_options if kind else {}), 'drop_path_rate': drop_path}
        self._weights, self._objective = weights, choice.factory
        self.config, self.recipe_report = choice.recipe.adaptation, choice.report
        self.optim = restored(OptimConfig, optim) or choice.recipe.optim
        self.guard = restored(GuardConfig, guard)
        super().__init__()
        plain = {  # plain values only: a checkpoint must load with weights_only=True
            **vars(self.options),
            'adaptation': self.config.to_dict(),
            'optim': dict(vars(self.optim)),
            'bands': list(self.backbone.patch_embed.bands),
            'guard': self.guard and dict(vars(self.guard)),
            'preset': choice.preset,
        }
        log_hparams(self, plain)

    def configure_models(self) -> None:
        """Build the backbone, load weights, adapt it and add the objective, in this order."""
        name, options = self.hparams['model'], self.options
        same = ('patch_size', 'bands', 'tokenizer', 'tokenizer_options', 'learned_position', 'rotary')
        vit = create_vit(
            name,
            img_size=options.img_size or task_size(name, options.patch_size),
            **{key: getattr(options, key) for key in same},
            **self._backbone_options,
        )
        vit.grad_checkpointing = options.grad_checkpointing
        loaded = BackboneWeights({}, {}, 'random weights')
        if self._weights is not None:
            fresh = (*self.config.extra, *vit.patch_embed.fresh)
            loaded = load_weights(vit, self._weights, fresh, options.patch_embed_init)
            self.config = self.config.with_extra(
                name for name in vit.patch_embed.fresh if any(k.startswith(f'{name}.') for k in loaded.anew)
            )
        elif not self.config.full:
            raise ValueError(
                'an adaptation needs pre-trained weights: pass weights, or set adaptation to full to '
                'pre-train from random weights'
            )
        explora(vit, self.config)
        self.model = self._objective(vit)
        self.load_report = f'{loaded.report}; {self.model.load_pretrained(loaded.parts)}'
        if options.compile_backbone:
            compile_blocks(self.model)

    def configure_metrics(self) -> None:
        """Create the feature monitor."""
        self.features = FeatureMonitor(self.hparams['monitor_features'], self.guard)

    @property
    def backbone(self) -> ViT:
        """The adapted backbone."""
        return self.model.backbone

    def forward(self, image: Tensor, timestamps: Tensor | None = None) -> Any:
        """Return features of images, shape (B, C, H, W), or as the tokenizer requires."""
        return self.backbone(image, timestamps=timestamps)

    def configure_optimizers(self) -> Any:
        """Set up AdamW over the trainable parameters, with warm-up and cosine decay per step."""
        length = training_length(self.trainer)
        self.model.set_schedule(length.total, length.epoch)
        return optimization(self.trainer, self.model, self.optim, length)

    def configure_callbacks(self) -> list[Callback]:
        """Return the standard callbacks and the feature monitor."""
        return [*super().configure_callbacks(), self.features]

    def setup(self, stage: str) -> None:
        """Match the data to the backbone and report what was loaded.

        Raises:
            ValueError: If bands are missing, or `frozen_dtype` would round the weights of the run.
        """
        super().setup(stage)
        datamodule: Any = getattr(self.trainer, 'datamodule', None)
        text = self.enlarging(datamodule)
        if stage != 'fit':
            return
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        linked = any(isinstance(callback, CropLink) for callback in callbacks)
        own = getattr(getattr(datamodule, 'augment', None), 'views', None)
        if self.model.views and hasattr(datamodule, 'use_views') and not (linked or own):
            rank_zero_warn(
                'the objective cuts its crops from crops that the data module already made: add CropLink() '
                "to the trainer's callbacks, as explora-geo fit does"
            )
        for said in filter(None, (self.load_report, self.recipe_report, text)):
            rank_zero_info(said)
        vit = self.backbone
        given = getattr(datamodule, 'given_statistics', datamodule is not None)
        match_data(datamodule, vit, 'data' if given else None)  # the backbone adapts to given statistics
        used = normalization_of(datamodule, vit.patch_embed.bands)
        for each in (vit, self.model.final_backbone):  # recorded in the files written
            each.normalization = used or vit.normalization
        if self._weights is not None and not self.config.full:
            _ = self.base_sha256  # hashes the base as loaded: 16-bit precision rounds it next
        if self.options.frozen_dtype == 'bfloat16':
            if not str(self.trainer.precision).startswith('bf16'):
                raise ValueError(
                    f'frozen_dtype bfloat16 would round the weights of a run with precision '
                    f'{self.trainer.precision}: set precision to bf16-mixed or frozen_dtype to float32'
                )
            hold_frozen(self.model, torch.bfloat16)

    def fit_crops(self, datamodule: Any) -> None:
        """Cap crops at the image size unless the arguments or the model name set their size."""
        side, named = tile_side(datamodule), task_size(self.hparams['model'])
        if side is not None and self.options.img_size is None and named is not None:
            self.model.cap_views(side)

    def enlarging(self, datamodule: Any) -> str:
        """Describe by how much tiles are enlarged to the objective's input size; empty if they are not."""
        self.fit_crops(datamodule)
        views = self.model.views
        size = views.global_size if views else None
        return describe_enlarging(datamodule, size or self.backbone.patch_embed.img_size)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return the objective's loss on `image`, shape (B, C, H, W), and any `views`."""
        losses = self.model(batch, self.global_step)
        loss = torch.stack(list(losses.values())).sum()
        return self.log_step(loss, batch, {**losses, **self.model.metrics})

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clip each part of the objective by its own norm, or all by one norm if a strategy shards them."""
        parts, largest = self.model.clipped, self.trainer.gradient_clip_val
        if (
            len(parts) == 1
            or not largest
            or self.trainer.gradient_clip_algorithm == 'value'
            or isinstance(self.trainer.strategy, FSDPStrategy | ModelParallelStrategy)
        ):
            self.clip_gradients(optimizer, *args, **kwargs)
            return
        for part in parts:
            clip_grad_norm_(part.parameters(), largest)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Let the objective withhold gradients."""
        self.model.before_step(self.global_step)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take an optimizer step and let the objective act on it before any checkpoint can be saved."""
        super().optimizer_step(*args, **kwargs)
        self.model.after_step(self.global_step + 1)

    @cached_property
    def base_sha256(self) -> str:
        """Hash of the frozen weights, computed once because it takes a second at ViT-L size."""
        return frozen_sha256(self.backbone)

    @property
    def trainable_share(self) -> float:
        """Trainable fraction of the backbone's parameters."""
        return sum(trainable_summary(self.backbone).values()) / self.backbone.num_parameters

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor | None:
        """Log the objective's loss; return features of `image` for `FeatureMonitor`."""
        if not self.trainer.sanity_checking:  # which only scores the starting weights
            loss = torch.stack(list(self.model(batch, self.global_step).values())).sum()
            self.log('val_loss', loss, batch_size=len(batch['image']), prog_bar=True, sync_dist=True)
        return None if self.features.kind == 'none' else self.predict_step(batch, batch_idx)

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return final-backbone features, shape (B, D), of normalized images."""
        features = self.model.final_backbone(batch['image'], timestamps=batch.get('timestamps'))
        return self.model.pool(features)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out frozen tensors, which the starting weights already hold."""
        super().on_save_checkpoint(checkpoint)
        checkpoint['objective'] = self.model.letter
        if self._weights is not None and not self.config.full:
            checkpoint['frozen'] = self.base_sha256
            for name in self.frozen_keys():
                checkpoint['state_dict'].pop(name, None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Fill in the frozen tensors from the starting weights.

        Raises:
            ValueError: If the objective or the starting weights differ from the checkpoint's.
        """
        super().on_load_checkpoint(checkpoint)
        letter, own = checkpoint.get('objective'), self.model.letter
        if letter and own and letter != own:
            raise ValueError(
                f'the checkpoint is from {letter}-ExPLoRA, but the task is {own}-ExPLoRA: pass the same '
                f'objective, or set adaptation to {self.config.notation(letter)!r}'
            )
        frozen = checkpoint.get('frozen')
        if frozen is None:
            return
        stated = checkpoint.get('hyper_parameters', {}).get('adaptation')  # some checkpoints have none
        if frozen != self.base_sha256:
            raise ValueError(
                'the checkpoint was trained from different weights or with a different adaptation: pass the '
                f'same weights and adaptation ({stated})'
            )
        saved = self.config if stated is None else ExPLoRAConfig.create(stated)
        if saved.scale != self.config.scale:
            raise ValueError(
                f'the checkpoint scales LoRA by {saved.scale:g}, but the task by {self.config.scale:g}: use '
                f'an adaptation with alpha {saved.alpha or saved.rank:g}'
            )
        state = self.state_dict()
        checkpoint['state_dict'].update({k: state[k] for k in self.frozen_keys()})

    def frozen_keys(self) -> list[str]:
        """Return the state-dict names of the backbone's frozen tensors."""
        names = set(trainable_names(self.backbone))
        return [f'model.backbone.{k}' for k in self.backbone.state_dict() if k not in names]

    def write_weights(self, folder: Path) -> dict[str, Any]:
        """Write `adapter.safetensors`, or `model.safetensors` after full training; return report entries."""
        name, trained = self.hparams['model'], self.model.final_backbone
        file = folder / ('model.safetensors' if self.config.full else 'adapter.safetensors')
        if self.config.full:
            state = {**trained.state_dict(), **self.model.extra_state()}
            write_state(file, state, model_metadata(self.backbone, name))
        else:
            dtype = getattr(torch, self.options.adapter_dtype)
            save_adapter(file, self.backbone, name, self.config, trained, dtype, self.base_sha256)
        return {
            'backbone': name,
            'adaptation': self.config.notation(self.model.letter),
            'config': self.config.to_dict(),
            'load_report': self.load_report,
            'trainable': trainable_summary(self.backbone),
            'trainable_share': self.trainable_share,
            'stopped': self.stopped,
            'starting_score': self.features.starting,
            'weights': file.name,
        }

    def pictures(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a few validation images with the objective's output below them."""
        shown = true_color_bands(self.backbone.patch_embed.bands)
        made = self.model.pictures(batch['image'], batch.get('timestamps'))
        return {title: two_rows(batch['image'], images, shown) for title, images in made.items()}


class CropLink(Callback):
    """Callback that lets the data module cut the objective's crops out of whole images.

    Without it, the objective cuts its crops out of the single crop made by the data module. `explora-geo fit`
    and `adapt` add it; in Python, use `Trainer(callbacks=[CropLink()])`.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Link task and data module once both know their image sizes."""
        datamodule: Any = getattr(trainer, 'datamodule', None)
        if hasattr(datamodule, 'use_views') and isinstance(pl_module, ExPLoRATask):
            pl_module.fit_crops(datamodule)
            datamodule.use_views(pl_module.model.views)
