"""The last stage: what a backbone is worth, by a probe of its frozen features or by tuning on labels."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import seed_everything

from explora_geo.devices import pick_device
from explora_geo.evaluation import Budget, ProbeProtocol, SweepConfig, run_probes
from explora_geo.evaluation.cache import extract_parts
from explora_geo.evaluation.probes import STRENGTHS
from explora_geo.trainers import ClassificationTask, OptimConfig, Regularisation
from explora_geo.trainers.kernels import faster_precision
from explora_geo.trainers.recipes import ADAPTATIONS

from ..fitting import build_trainer, draw_training_labels, quiet
from .adalora import AdaLoRATask
from .data import classes_named, classes_of, cut, describe_data, open_data
from .jobs import Job, devices_of, load_class, split_batch, trainer_content, with_rate, world_size
from .meter import Meter
from .progress import CurveScore, Progress
from .source import MODEL, open_stage
from .stages import Stage, Store

#: The metric of a task that is the table's value.
_VALUES = {'SegmentationTask': 'JaccardIndex'}
#: Regularisation that needs one label per image.
_ONE_LABEL = ('mixup', 'cutmix', 'erasing')


def probe(store: Store, job: Job, model: Stage, validate: bool = False) -> Stage:
    """Measure frozen features, unless that is done.

    Args:
        store: Where stages are kept.
        job: The row.
        model: Stage that left the backbone.
        validate: Score held-out training images by a logistic regression instead of the test part.

    Returns:
        The finished stage; `value` of its record is in [0, 1].

    Raises:
        ValueError: If there are no held-out training images to validate on.
    """
    settings = job.scale.probe
    module = open_data(job.data)
    cut(module, settings.labelled, settings.validated, settings.tested)
    content = {
        'model': model.key,
        'data': describe_data(job.data, module),
        'protocol': {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(settings).items()},
        'strengths': list(STRENGTHS),
        'seed': job.seed,
        'validate': validate,
        **({'last_blocks': job.row.last_blocks} if job.row.last_blocks and not validate else {}),
    }

    def work(stage: Stage) -> Mapping[str, Any]:
        vit = open_stage(model, job.source.img_size).to(pick_device('auto'))
        if validate:
            _validate_on_training(module)
        with Meter() as meter:
            tables = extract_parts(vit, module, None, progress=lambda text: None)
            found = run_probes(
                tables['train'],
                tables['val'],
                tables['test'],
                _protocol(job, vit.depth, validate),
                classes_named(module),
            )
        return {
            **meter.to_dict(),
            'value': found.scores[0].mean,
            'scores': {f'{s.method}, {s.budget}': s.mean for s in found.scores},
            'details': [s.to_dict() for s in found.scores],
            'strengths': list(STRENGTHS),
            'feature_dim': vit.embed_dim,
            'images': {part: len(table.label) for part, table in tables.items()},
            'absent': found.absent,
        }

    stage = store.stage('probed', content)
    if not stage.finished:
        store.make(model)
    store.run(stage, work)
    return stage


def _protocol(job: Job, depth: int, validate: bool) -> ProbeProtocol:
    settings = job.scale.probe
    # A search of learning rates is that of the row which reads the usual blocks.
    last = 0 if validate else min(job.row.last_blocks, depth)
    blocks = (last,) if last else tuple(dict.fromkeys(min(n, depth) for n in settings.blocks))
    sweep = SweepConfig(blocks=blocks, epochs=settings.epochs, iterations=settings.iterations, seed=job.seed)
    return ProbeProtocol(
        budgets=tuple(Budget.parse(b) for b in (('all',) if validate else settings.budgets)),
        seeds=settings.label_seeds,
        methods=('logistic',) if validate else settings.methods,
        sweep=sweep,
        last_blocks=last or 1,
    )


def _validate_on_training(module: Any) -> None:
    """Make the held-out training images the test; settings are chosen on others of the training part."""
    if module.val_dataset is None:
        raise ValueError(
            'a search needs held-out training images: give the data module val_split, or search: null'
        )
    module.test_dataset, module.val_dataset = module.val_dataset, None


def tune(
    store: Store,
    job: Job,
    model: Stage,
    factor: float = 1.0,
    steps: int | None = None,
    validate: bool = False,
) -> Stage:
    """Tune on labels, unless that is done.

    Args:
        store: Where stages are kept.
        job: The row.
        model: Stage that left the backbone.
        factor: Factor on the learning rate.
        steps: Optimiser steps instead of the scale's.
        validate: Score held-out training images instead of the test part.

    Returns:
        The finished stage; `value` of its record is in [0, 1].
    """
    per_device, _ = split_batch(job.scale, job.data, job.tune.batch_size)
    module = open_data(job.data, batch_size=per_device)
    cut(module, None, job.scale.probe.validated, job.scale.probe.tested)
    content = {
        'model': model.key,
        'data': describe_data(job.data, module),
        'tuning': job.row.tuning,
        'tune': {k: dict(v) if isinstance(v, Mapping) else v for k, v in asdict(job.tune).items()},
        'task': [job.data.task, dict(job.data.task_args)],
        'factor': factor,
        'steps': steps,
        'seed': job.seed,
        'validate': validate,
        **trainer_content(job.scale),
    }
    stage = store.stage('tuned', content)
    if not stage.finished:
        store.make(model)
    store.run(stage, _Tuning(job, model, module, factor, steps, validate), together=True)
    return stage


def _fitting(regularisation: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Without what is for one label per image, unless that is the task."""
    one_label = issubclass(kind, ClassificationTask)
    return {k: v for k, v in regularisation.items() if one_label or k not in _ONE_LABEL}


class _Tuning:
    """The work of the stage."""

    def __init__(
        self, job: Job, model: Stage, module: Any, factor: float, steps: int | None, validate: bool
    ) -> None:
        self.job, self.model, self.module = job, model, module
        self.factor, self.steps, self.validate = factor, steps, validate

    def build(self) -> Any:
        """The task, before anything is tuned."""
        job, settings = self.job, self.job.tune
        kind = load_class(job.data.task or 'explora_geo.trainers.ClassificationTask')
        tuning = job.row.tuning
        if tuning == 'adalora':
            if kind is not ClassificationTask:
                raise ValueError(f'AdaLoRA is built for classification, not for {job.data.task}')
            kind, tuning = AdaLoRATask, 'lora'  # which has the same frozen backbone
        config = ADAPTATIONS[tuning]
        config = config.with_extra(self.model.record.get('fresh', ()))  # embeddings that hold nothing yet
        seed_everything(job.seed, workers=False, verbose=False)
        return kind(
            weights=str(self.model.folder / MODEL),
            img_size=job.source.img_size,
            tuning=tuning,
            adaptation=config,
            num_classes=classes_of(self.module, job.data),
            optim=with_rate(OptimConfig(**settings.optim), self.factor),
            regularisation=Regularisation(**_fitting(settings.regularisation, kind)),
            **job.data.task_args,
        )

    def __call__(self, stage: Stage) -> Mapping[str, Any]:
        """Tune and test."""
        job, settings = self.job, self.job.tune
        if self.validate:
            _validate_on_training(self.module)
        images = draw_training_labels(self.module, settings.labels, job.seed)
        batches = max(images // settings.batch_size, 1)
        steps = settings.steps or settings.epochs * batches  # type: ignore[operator]
        steps = min(steps, self.steps or steps)
        per_device, accumulate = split_batch(job.scale, job.data, min(settings.batch_size, images))
        self.module.batch_size = per_device
        progress = Progress(CurveScore(self.module, 1), max(1, job.scale.every), drawn=False)
        task = self.build()
        trained = sum(p.numel() for p in task.model.backbone.parameters() if p.requires_grad)
        with quiet(), Meter(*devices_of(job.scale)) as meter:
            trainer = build_trainer(
                stage.folder,
                steps,
                [progress],
                stage.checkpoint,
                job.scale.every,
                **{
                    'devices': 1,
                    'precision': faster_precision(),
                    'accumulate_grad_batches': accumulate,
                    'max_epochs': -1,  # until the steps are done
                    **job.scale.trainer,
                },
            )
            resume = str(stage.checkpoint) if stage.checkpoint.is_file() else None
            trainer.fit(task, datamodule=self.module, ckpt_path=resume, weights_only=True)
        with quiet(), torch.no_grad():
            found = trainer.test(task, datamodule=self.module, verbose=False)[0]
        name = _VALUES.get(type(task).__name__, 'OverallAccuracy')
        return {
            **progress.costs(meter),
            'value': found[f'test_{name}'],
            'metrics': {k.removeprefix('test_'): v for k, v in found.items()},
            'steps': trainer.global_step,
            'labels': images,
            'images_seen': trainer.global_step * per_device * accumulate * world_size(job.scale),
            'tuned_parameters': trained,
            'images': {'train': images, 'test': len(self.module.test_dataset)},
            'precision': str(trainer.precision),
        }
