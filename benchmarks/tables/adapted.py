"""The second stage: self-supervised pre-training on the new images, resumed where it was stopped."""

import statistics
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lightning.pytorch import seed_everything

from explora_geo.adaptation import trainable_summary
from explora_geo.checkpoints import model_metadata, write_state
from explora_geo.trainers import ExPLoRATask
from explora_geo.trainers.kernels import faster_precision

from ..fitting import build_trainer, quiet
from .data import describe_data, open_data
from .jobs import Job, devices_of, split_batch, trainer_content, with_rate
from .meter import Meter
from .progress import CurveScore, Progress
from .recipe import Recipe, plain
from .source import MODEL, backbone_options
from .stages import Stage, Store


def adapt(store: Store, job: Job, source: Stage, factor: float = 1.0, steps: int | None = None) -> Stage:
    """Pre-train as a row says, unless that is done.

    Args:
        store: Where stages are kept.
        job: The row; it has a recipe.
        source: Stage of what it starts from.
        factor: Factor on the recipe's learning rate.
        steps: Optimiser steps instead of the recipe's.

    Returns:
        The finished stage; its folder holds the merged backbone, and the adapter if there is one.

    Raises:
        FileNotFoundError: If images or weights do not exist.
        ValueError: If the loss is not finite.
    """
    assert job.recipe is not None
    recipe = replace(
        job.recipe,
        optim=with_rate(job.recipe.optim, factor),
        steps=min(job.recipe.steps, steps or job.recipe.steps),
    )
    per_device, accumulate = split_batch(job.scale, job.pretrain_data, recipe.batch_size)
    module = open_data(job.pretrain_data, batch_size=per_device)
    content = {
        'source': source.key,
        'recipe': recipe.to_dict(),
        'data': describe_data(job.pretrain_data, module),
        'seed': job.seed,
        **trainer_content(job.scale),
    }
    stage = store.stage('adapted', content)
    work = _Pretraining(job, recipe, module, accumulate)
    store.run(stage, work, together=True)
    return stage


class _Pretraining:
    """The work of the stage."""

    def __init__(self, job: Job, recipe: Recipe, module: Any, accumulate: int) -> None:
        self.job, self.recipe, self.module, self.accumulate = job, recipe, module, accumulate

    def build(self) -> ExPLoRATask:
        """The task, before anything is trained."""
        job, recipe = self.job, self.recipe
        seed_everything(job.seed, workers=False, verbose=False)
        return ExPLoRATask(
            model=job.source.model,
            weights=job.source.weights or None,
            adaptation=recipe.adaptation,
            objective=recipe.factory,
            optim=recipe.optim,
            preset=None,  # the recipe is complete
            drop_path_rate=recipe.drop_path_rate,
            learned_position=job.source.learned_position,
            monitor_features='none',
            guard=None,  # every row is to be seen as it is
            **backbone_options(job.source, job.backbone_options),
        )

    def __call__(self, stage: Stage) -> Mapping[str, Any]:
        """Train, and leave the backbone in the stage's folder."""
        job, recipe = self.job, self.recipe
        score = CurveScore(self.module, job.scale.curve or 1)
        drawn = job.scale.curve > 0 and score.known
        progress = Progress(score, max(1, job.scale.every), drawn=drawn)
        task = self.build()
        trainable = trainable_summary(task.backbone)
        with quiet(), Meter(*devices_of(job.scale)) as meter:
            trainer = build_trainer(
                stage.folder,
                recipe.steps,
                [progress],
                stage.checkpoint,
                job.scale.every,
                **{
                    'devices': 1,
                    'precision': faster_precision(),
                    'gradient_clip_val': 3.0,
                    'accumulate_grad_batches': self.accumulate,
                    **job.scale.trainer,
                },
            )
            resume = str(stage.checkpoint) if stage.checkpoint.is_file() else None
            trainer.fit(task, datamodule=self.module, ckpt_path=resume, weights_only=True)
        vit = plain(task.model.final_backbone)
        if trainer.is_global_zero:
            meta = model_metadata(vit, job.source.model)
            write_state(stage.folder / MODEL, vit.state_dict(), meta)
        step = statistics.median(progress.seconds) if progress.seconds else None
        return {
            **progress.costs(meter),
            'steps': recipe.steps,
            'batch': recipe.batch_size,
            'images_seen': recipe.steps * recipe.batch_size,
            'seconds_per_step': step,
            'images_per_s': None if step is None else recipe.batch_size / step,
            'trainable': sum(trainable.values()),
            'parts': trainable,
            'parameters': vit.num_parameters,
            'loss': float(trainer.callback_metrics['train_loss']),
            'curve': [list(point) for point in progress.curve],
            'precision': str(trainer.precision),
            'skipped': len(task.skipped),
        }
