"""`explora-geo fit` and the other commands of LightningCLI, and the plan of a run."""

import warnings
from typing import Any

import typer

#: Settings of commands whose options LightningCLI reads itself.
PASS_ON = {'allow_extra_args': True, 'ignore_unknown_options': True, 'help_option_names': []}
_DRY = '--dry-run'


def fit(context: typer.Context) -> None:
    """Pre-train or tune by a YAML file (LightningCLI); --dry-run shows the plan and trains nothing.

    Example: explora-geo fit --config tests/conf/pretrain_mae_folder.yaml --dry-run
    """
    if _DRY in context.args:
        _show(plan([str(context.info_name), *(a for a in context.args if a != _DRY)]))
    else:
        _run(context)


def validate(context: typer.Context) -> None:
    """Evaluate a checkpoint on validation data.

    Example: explora-geo validate --config run.yaml --ckpt_path last.ckpt
    """
    _run(context)


def test(context: typer.Context) -> None:
    """Measure a tuned model on test data.

    Example: explora-geo test --config run.yaml --ckpt_path last.ckpt
    """
    _run(context)


def predict(context: typer.Context) -> None:
    """Predict with a tuned model.

    Example: explora-geo predict --config run.yaml --ckpt_path last.ckpt
    """
    _run(context)


def _run(context: typer.Context) -> None:
    _lightning([str(context.info_name), *context.args])


def _lightning(args: list[str], **kwargs: Any) -> Any:
    from explora_geo.commands.configuration import check_configs
    from explora_geo.main import run

    check_configs(args)
    with warnings.catch_warnings():
        # Lightning warns that both sys.argv and args are given; they are the same.
        warnings.filterwarnings('ignore', message="LightningCLI's args parameter")
        return run(args, **kwargs)


def plan(args: list[str]) -> dict[str, str]:
    """What a run would do: model and data are made, nothing is trained or written.

    Args:
        args: `fit` with the options of LightningCLI.

    Returns:
        Texts by what they are about.

    Raises:
        jsonargparse.ArgumentError: If a key or value of the configuration is unknown.
        ValueError: If model, weights and data do not fit.
    """
    from math import ceil

    from explora_geo.trainers.steady import SteadyTask

    command = _lightning(args, start=False)
    task, datamodule, trainer = command.model, command.datamodule, command.trainer
    datamodule.setup('fit')
    loader = datamodule.train_dataloader()
    batches = _batches(len(loader), trainer.limit_train_batches)
    accumulated = trainer.accumulate_grad_batches
    per_epoch = ceil(batches / accumulated)
    epochs, steps = trainer.max_epochs, trainer.max_steps
    if epochs is None or epochs < 0:
        epochs = 1000 if steps < 0 else ceil(steps / per_epoch)  # Lightning's own default
    total = per_epoch * epochs if steps < 0 else min(steps, per_epoch * epochs)
    trained = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    size = getattr(loader, 'batch_size', None) or datamodule.batch_size
    validation = getattr(datamodule, 'val_dataset', None)
    rows = {
        'task': type(task).__name__,
        **(_backbone(task, datamodule) if isinstance(task, SteadyTask) else {}),
        'trains': f'{trained:,} parameters with heads and decoders',
        'weights': getattr(task, 'load_report', ''),
        'data': f'{type(datamodule).__name__}, {batches:,} batches of {size} an epoch, '
        f'validation on {len(validation) if validation else "no"} images',
        'length': f'{total:,} optimiser steps of {size * accumulated * trainer.world_size} images, '
        f'{total / per_epoch:.3g} epochs',
        'device': f'{trainer.world_size} x {trainer.strategy.root_device}, precision {trainer.precision}',
        'writes to': str(trainer.log_dir or trainer.default_root_dir),
    }
    return {name: text for name, text in rows.items() if text}


def _batches(available: int, limit: int | float | None) -> int:
    """Batches of an epoch under Lightning's limit: a number of batches, or a share of them."""
    if limit is None:
        return available
    return min(available, limit) if isinstance(limit, int) else max(1, int(available * limit))


def _show(rows: dict[str, str]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, title='Plan, nothing was trained', title_justify='left')
    for name, text in rows.items():
        table.add_row(name, escape(text))
    Console().print(table)


def _backbone(task: Any, datamodule: Any) -> dict[str, str]:
    """What one of our tasks trains; TorchGeo's have models of many kinds."""
    vit = task.model.backbone
    tokenizer = vit.patch_embed
    enlarging = task.enlarging(datamodule) if hasattr(task, 'enlarging') else ''
    views = getattr(task.model, 'views', None)
    return {
        'backbone': f'{task.hparams["model"]}, {vit.num_parameters:,} parameters',
        'input': f'{tokenizer.kind} tokenizer, {tokenizer.img_size} px, bands {", ".join(tokenizer.bands)}',
        'crops': f'{views.global_size} and {views.local_size} px' if views else '',
        'enlarged': enlarging,
        'adaptation': task.config.notation(getattr(task.model, 'letter', '')),
        'recipe': getattr(task, 'recipe_report', ''),
    }
