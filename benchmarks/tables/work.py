"""Work of a row's stages: source weights, pre-training, a probe or tuning on labels."""

import copy
import functools
import statistics
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from explora_geo.adaptation import merge_lora, trainable_summary
from explora_geo.checkpoints import (
    load_backbone,
    load_weights,
    model_metadata,
    read_weights,
    state_sha256,
    write_state,
)
from explora_geo.devices import faster_precision, pick_device
from explora_geo.evaluation import Budget, ProbeProtocol, SweepConfig, run_probes
from explora_geo.evaluation.features import extract_parts
from explora_geo.evaluation.probes import STRENGTHS
from explora_geo.models import create_vit
from explora_geo.trainers import ClassificationTask, CropLink, ExPLoRATask, OptimConfig, Regularization
from explora_geo.trainers.options import ADAPTATIONS

from .data import classes_named, cut, describe_data, draw_training_labels, load_class, open_data
from .jobs import Job, split_batch, trainer_content, world_size
from .meter import Meter
from .recipe import Recipe, plain_value
from .stages import Stage, Store
from .training import Progress, curve_score, quiet

MODEL = 'model.safetensors'
#: Regularization that needs one label per image.
_ONE_LABEL = ('mixup', 'cutmix', 'erasing')


@functools.lru_cache(maxsize=16)
def weights_sha256(weights: str) -> str:
    """Hash the values of source weights, independent of the file."""
    try:
        return state_sha256(read_weights(weights)[0])
    except FileNotFoundError as error:
        raise FileNotFoundError(f'{error}: create the source first, or use another in the scale') from error


def prepare_source(store: Store, job: Job) -> Stage:
    """Build a row's backbone and load its source weights; random weights depend on the seed."""
    source, options = job.source, job.backbone_options
    content = {
        'model': source.model,
        'weights': weights_sha256(source.weights) if source.weights else f'random, seed {job.seed}',
        'options': options,
        'learned_position': source.learned_position,
    }

    def work(stage: Stage) -> dict[str, Any]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.seed if not source.weights else 0)
            vit = create_vit(source.model, learned_position=source.learned_position, **options)
            loaded = load_weights(vit, source.weights, vit.patch_embed.fresh) if source.weights else None
        write_state(stage.folder / MODEL, vit.state_dict(), model_metadata(vit, source.model))
        report, anew = (loaded.report, loaded.anew) if loaded else ('random weights', ())
        fresh = [name for name in vit.patch_embed.fresh if any(k.startswith(f'{name}.') for k in anew)]
        return {'report': report, 'parameters': vit.num_parameters, 'fresh': fresh}

    return store.run('source', content, work)


def adapt(store: Store, job: Job, source: Stage, factor: float = 1.0, steps: int | None = None) -> Stage:
    """Pre-train a row on the new images without labels, unless that is done."""
    assert job.recipe is not None
    length = min(job.recipe.steps, steps or job.recipe.steps)
    recipe = replace(job.recipe, optim=_with_rate(job.recipe.optim, factor), steps=length)
    per_device, accumulate, _ = split_batch(job.scale, job.pretrain_data, recipe.batch_size)
    module = open_data(job.pretrain_data, batch_size=per_device)
    content = {
        'source': source.key,
        'recipe': recipe.to_dict(),
        'data': describe_data(job.pretrain_data, module),
        'seed': job.seed,
        **trainer_content(job.scale),
    }

    def work(stage: Stage) -> Mapping[str, Any]:
        progress = Progress(curve_score(module, job.scale.curve), max(1, job.scale.every))
        task = _pretraining_task(job, recipe)
        trainable = trainable_summary(task.backbone)
        options = {'accumulate_grad_batches': accumulate, 'gradient_clip_val': 3.0}
        trainer, costs = _fit(stage, job, task, module, progress, recipe.steps, **options)
        vit: Any = merge_lora(copy.deepcopy(task.model.final_backbone)).requires_grad_(False).cpu().eval()
        vit.mask_token = None  # used in pre-training only, and absent from timm's models
        if trainer.is_global_zero:
            write_state(stage.folder / MODEL, vit.state_dict(), model_metadata(vit, job.source.model))
        step = statistics.median(progress.seconds) if progress.seconds else None
        return {
            **costs,
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

    return store.run('adapted', content, work, together=True)


def _with_rate(optim: OptimConfig, factor: float) -> OptimConfig:
    return replace(optim, base_lr=optim.base_lr * factor)


def _pretraining_task(job: Job, recipe: Recipe) -> ExPLoRATask:
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
        guard=None,  # show every row as it is, even if features collapse
        **job.backbone_options,
    )


def _fit(
    stage: Stage, job: Job, task: Any, module: Any, progress: Progress, steps: int, **options: Any
) -> tuple[Trainer, dict[str, Any]]:
    """Fit a task silently, from its checkpoint if there is one; return its trainer and cost."""
    file, saving = stage.checkpoint, []
    if 0 < job.scale.every < steps:
        kept: dict[str, Any] = {'save_on_train_epoch_end': False, 'enable_version_counter': False}
        saving = [ModelCheckpoint(file.parent, file.stem, every_n_train_steps=job.scale.every, **kept)]
    options |= dict.fromkeys(('logger', 'enable_model_summary', 'enable_progress_bar'), False)
    options |= {'devices': 1, 'precision': faster_precision(), **job.scale.trainer}
    with quiet(), Meter(world_size(job.scale)) as meter:
        trainer = Trainer(
            max_steps=steps,
            default_root_dir=stage.folder,
            enable_checkpointing=bool(saving),
            limit_val_batches=0,
            callbacks=[CropLink(), progress, *saving],
            **options,
        )
        resume = str(file) if file.is_file() else None
        trainer.fit(task, datamodule=module, ckpt_path=resume, weights_only=True)
    return trainer, progress.costs(meter)


def probe(store: Store, job: Job, model: Stage, validate: bool = False) -> Stage:
    """Evaluate frozen features, unless that is done."""
    settings = job.scale.probe
    module = open_data(job.data)
    cut(module, settings.labeled, settings.validated, settings.tested)
    content = {
        'model': model.key,
        'data': describe_data(job.data, module),
        'protocol': plain_value(settings),
        'strengths': list(STRENGTHS),
        'seed': job.seed,
        'validate': validate,
        **({'last_blocks': job.row.last_blocks} if job.row.last_blocks and not validate else {}),
    }

    def work(stage: Stage) -> Mapping[str, Any]:
        vit = load_backbone(None, model.folder / MODEL, img_size=job.source.img_size).to(pick_device('auto'))
        if validate:
            _validate_on_training(module)
        with Meter() as meter:
            tables = extract_parts(vit, module, None, progress=lambda text: None)
            found = run_probes(tables, _protocol(job, vit.depth, validate), classes_named(module))
        return {
            **meter.to_dict(),
            'value': found.scores[0].mean,
            'scores': {f'{s.method}, {s.budget}': s.mean for s in found.scores},
            'details': [s.to_dict() for s in found.scores],
            'strengths': list(STRENGTHS),
            'feature_dim': vit.embed_dim,
            'images': found.images,
            'absent': found.absent,
        }

    return store.run('probed', content, work, needs=model)


def _protocol(job: Job, depth: int, validate: bool) -> ProbeProtocol:
    settings = job.scale.probe
    # Learning rate searches always read the usual blocks.
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
    """Test on the held-out training images; settings are chosen on other training images."""
    if module.val_dataset is None:
        raise ValueError('a search needs held-out training images: set val_split, or search: null')
    module.test_dataset, module.val_dataset = module.val_dataset, None


def tune(
    store: Store, job: Job, model: Stage, factor: float = 1, steps: int | None = None, validate: bool = False
) -> Stage:
    """Tune on labels, unless that is done; arguments and result as in `adapt` and `probe`."""
    settings = job.tune
    module = open_data(job.data, batch_size=split_batch(job.scale, job.data, settings.batch_size)[0])
    cut(module, None, job.scale.probe.validated, job.scale.probe.tested)
    content = {
        'model': model.key,
        'data': describe_data(job.data, module),
        'tuning': job.row.tuning,
        'tune': plain_value(settings),
        'task': [job.data.task, dict(job.data.task_args)],
        'factor': factor,
        'steps': steps,
        'seed': job.seed,
        'validate': validate,
        **trainer_content(job.scale),
    }

    def work(stage: Stage) -> Mapping[str, Any]:
        if validate:
            _validate_on_training(module)
        images = draw_training_labels(module, settings.labels, job.seed)
        batches = max(images // settings.batch_size, 1)
        length = settings.steps or settings.epochs * batches  # type: ignore[operator]
        length = min(length, steps or length)
        batch = min(settings.batch_size, images)
        module.batch_size, accumulate, seen = split_batch(job.scale, job.data, batch)
        progress = Progress(None, max(1, job.scale.every))
        task = _tuning_task(job, model, module, factor)
        trained = sum(p.numel() for p in task.model.backbone.parameters() if p.requires_grad)
        options = {'accumulate_grad_batches': accumulate, 'max_epochs': -1}
        trainer, costs = _fit(stage, job, task, module, progress, length, **options)
        with quiet(), torch.no_grad():
            found = trainer.test(task, datamodule=module, verbose=False)[0]
        metrics = {k.removeprefix('test_'): v for k, v in found.items()}
        return {
            **costs,
            'value': metrics['OverallAccuracy' if isinstance(task, ClassificationTask) else 'JaccardIndex'],
            'metrics': metrics,
            'steps': trainer.global_step,
            'labels': images,
            'images_seen': trainer.global_step * seen,
            'tuned_parameters': trained,
            'images': {'train': images, 'test': len(module.test_dataset)},
            'precision': str(trainer.precision),
        }

    return store.run('tuned', content, work, together=True, needs=model)


def _tuning_task(job: Job, model: Stage, module: Any, factor: float) -> Any:
    settings = job.tune
    kind = load_class(job.data.task) if job.data.task else ClassificationTask
    regularisation = settings.regularisation
    if not issubclass(kind, ClassificationTask):
        regularisation = {k: v for k, v in regularisation.items() if k not in _ONE_LABEL}
    seed_everything(job.seed, workers=False, verbose=False)
    return kind(
        weights=str(model.folder / MODEL),
        img_size=job.source.img_size,
        tuning=job.row.tuning,
        # Newly initialized embeddings train, too.
        adaptation=ADAPTATIONS[job.row.tuning].with_extra(model.record.get('fresh', ())),
        num_classes=len(classes_named(module)) or job.data.classes or 0,
        optim=_with_rate(OptimConfig(**settings.optim), factor),
        regularization=Regularization(**regularisation),
        **job.data.task_args,
    )
