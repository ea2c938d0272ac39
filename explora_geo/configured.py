"""Objects described in YAML files: Lightning runs of TorchGeo's and our tasks, and data for probes."""

import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import ArgsType, LightningCLI
from torchgeo.datamodules import BaseDataModule

from explora_geo._compat import BaseTask
from explora_geo._version import __version__
from explora_geo.checkpoints.files import read_checkpoint
from explora_geo.datamodules import FolderDataModule  # the import lets YAML use bare class names
from explora_geo.datasets.files import find_images
from explora_geo.datasets.images import BadTileError, read_header
from explora_geo.models.builders import DINOV2_SIZE
from explora_geo.trainers import CropLink
from explora_geo.trainers.resume import ReproducibleTask

# Last lines of the help of subcommands
_MORE = {'fit': '--dry-run', **dict.fromkeys(('validate', 'test', 'predict'), '--ckpt_path last.ckpt')}
_EXAMPLES = {k: {'epilog': f'Example: explora-geo {k} --config run.yaml {v}'} for k, v in _MORE.items()}


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML file that must hold a mapping.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not YAML, or holds anything but a mapping.
    """
    if not file.is_file():
        raise FileNotFoundError(f'configuration file not found: {file}')
    try:
        content = yaml.safe_load(file.read_text(encoding='utf-8'))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # or not even text
        raise ValueError(f'{file} is not valid YAML ({error})') from error
    if not isinstance(content, dict):
        raise ValueError(f'{file} must contain YAML keys and values, got {type(content).__name__}')
    return content


class _Checked(LightningCLI):
    """LightningCLI that never executes code in checkpoints, and rejects unreadable ones before it starts."""

    def parse_arguments(self, parser: Any, args: ArgsType) -> None:
        """Parse the configuration, and check that its checkpoint is readable."""
        super().parse_arguments(parser, args)
        options = self.config.get(self.config.get('subcommand')) or {}
        path = options.get('ckpt_path')
        if path is not None and path not in ('last', 'best', 'hpc') and '://' not in str(path):
            read_checkpoint(path, mmap=True)
        if options.get('weights_only') is None:
            options['weights_only'] = True  # Lightning would unpickle downloads

    def before_instantiate_classes(self) -> None:
        """By default, let the sanity check before training cover the whole labeled set.

        The score of the starting weights is the baseline for later scores.
        """
        options = self.config.get(self.subcommand) or {}
        task, trainer = options.get('model') or {}, options.get('trainer') or {}
        watched = task.get('init_args', {}).get('monitor_features', 'none') != 'none'
        if watched and trainer.get('num_sanity_val_steps') is None and not trainer.get('fast_dev_run'):
            trainer['num_sanity_val_steps'] = -1


class _Prepared(_Checked):
    """The same command, instantiated but not started."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Do nothing."""


def run(args: ArgsType = None, start: bool = True, **kwargs: Any) -> LightningCLI:
    """Run one Lightning subcommand.

    Args:
        args: `fit`, `validate`, `test` or `predict` with the options of LightningCLI.
        start: If False, only instantiate the command's `trainer`, `model` and `datamodule`.
        **kwargs: Further arguments of `LightningCLI`.

    Raises:
        FileNotFoundError: If a `--config` file does not exist.
        ValueError: If one is not a YAML mapping.
        jsonargparse.ArgumentError: If a key or value of the configuration is unknown.
    """
    if isinstance(args, list):
        # LightningCLI's own errors do not name the file.
        for name, following in zip(args, [*args[1:], ''], strict=True):
            option, _, value = name.partition('=')
            if option in ('--config', '-c'):
                read_yaml(Path(value or following))
    with warnings.catch_warnings():
        # Lightning warns that both sys.argv and args are given; they are the same.
        warnings.filterwarnings('ignore', message="LightningCLI's args parameter")
        return (_Checked if start else _Prepared)(
            model_class=BaseTask,
            datamodule_class=BaseDataModule,
            seed_everything_default=0,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_kwargs={'overwrite': True},
            trainer_defaults={'callbacks': [CropLink()]},
            parser_kwargs={'version': __version__, 'exit_on_error': False, **_EXAMPLES},
            args=args,
            **kwargs,
        )


def plan(args: list[str]) -> dict[str, str]:
    """Describe what `fit` with LightningCLI options would do, as texts by topic.

    Model and data are instantiated; nothing is trained or written.

    Raises:
        ValueError: If model, weights and data do not fit.
    """
    command = run(args, start=False)
    task, datamodule, trainer = command.model, command.datamodule, command.trainer
    datamodule.setup('fit')
    loader = datamodule.train_dataloader()
    limit, accumulated = trainer.limit_train_batches, trainer.accumulate_grad_batches
    batches = min(len(loader), limit) if isinstance(limit, int) else max(1, int(len(loader) * limit))
    per_epoch = ceil(batches / accumulated)
    epochs = trainer.max_epochs
    limits = trainer.max_steps, -1 if epochs is None else per_epoch * epochs
    total = min((n for n in limits if n >= 0), default=1000 * per_epoch)  # Lightning's own default
    trained = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    size = getattr(loader, 'batch_size', None) or datamodule.batch_size
    validation = getattr(datamodule, 'val_dataset', None)
    rows = {
        'task': type(task).__name__,
        **(_backbone(task, datamodule) if isinstance(task, ReproducibleTask) else {}),
        'trainable': f'{trained:,} parameters, including heads and decoders',
        'weights': getattr(task, 'load_report', ''),
        'data': f'{type(datamodule).__name__}, {batches:,} batches of {size} per epoch, '
        f'{len(validation) if validation else "no"} validation images',
        'length': f'{total:,} optimizer steps of {size * accumulated * trainer.world_size} images, '
        f'{total / per_epoch:.3g} epochs',
        'device': f'{trainer.world_size} x {trainer.strategy.root_device}, precision {trainer.precision}',
        'output': str(trainer.log_dir or trainer.default_root_dir),
    }
    return {name: text for name, text in rows.items() if text}


def _backbone(task: Any, datamodule: Any) -> dict[str, str]:
    """Describe the model of one of our tasks; those of TorchGeo's tasks vary too much."""
    vit = task.model.backbone
    tokenizer = vit.patch_embed
    views = getattr(task.model, 'views', None)
    return {
        'backbone': f'{task.hparams["model"]}, {vit.num_parameters:,} parameters',
        'input': f'{tokenizer.kind} tokenizer, {tokenizer.img_size} px, bands {", ".join(tokenizer.bands)}',
        'crops': f'{views.global_size} and {views.local_size} px' if views else '',
        'enlarged': task.enlarging(datamodule),
        'adaptation': task.config.notation(getattr(task.model, 'letter', '')),
        'recipe': getattr(task, 'recipe_report', ''),
    }


def open_data(data: Path, val_split: float) -> tuple[int, Callable[..., Any]]:
    """Open data for probes.

    Args:
        data: Folder with `train/` and `test/`, and optionally `val/`, of class folders; or a YAML file with
            `class_path` and `init_args`, or a whole configuration of `explora-geo fit`.
        val_split: Share of the training images that is held out if a folder has no `val/`.

    Returns:
        Shorter side of the images, pixels (if unknown, DINOv2's 224), and a function that makes the data
        module, not yet set up; its arguments apply to a folder and are ignored for a YAML file.

    Raises:
        FileNotFoundError: If there is no such file or folder, or `train/` or `test/` is missing.
        ValueError: If the YAML file has no data module, a class is empty, or val_split is not in (0, 1).
    """
    if not 0 < val_split < 1:
        raise ValueError(f'val_split must be between 0 and 1 (probes are chosen on it), got {val_split}')
    if not data.exists():
        raise FileNotFoundError(f'data not found: {data}; pass a folder of train/ and test/, or a YAML file')
    if data.is_file():
        datamodule = _configured(data)
        return getattr(datamodule, 'image_size', DINOV2_SIZE), lambda **kwargs: datamodule
    missing = [part for part in ('train', 'test') if not (data / part).is_dir()]
    if missing:
        raise FileNotFoundError(
            f'{data} has no {" or ".join(missing)} folder: put class folders into {data}/train and '
            f'{data}/test, or pass a YAML file that names a data module'
        )
    for part in ('train', 'test'):
        empty = [p.name for p in sorted((data / part).iterdir()) if p.is_dir() and not find_images(p)]
        if empty:
            raise ValueError(
                f'empty class folders in {data / part}: {", ".join(empty)}; add images or remove them'
            )
    side, val = DINOV2_SIZE, data / 'val'
    for path in find_images(data / 'train'):
        with suppress(BadTileError):
            side = read_header(path).side
            break
    parts: dict[str, Any] = {'val_root': val, 'val_split': 0.0} if val.is_dir() else {'val_split': val_split}
    return side, partial(FolderDataModule, data / 'train', test_root=data / 'test', **parts)


def _configured(file: Path) -> Any:
    content = read_yaml(file)
    section = content.get('data', content)
    if not isinstance(section, dict) or 'class_path' not in section:
        raise ValueError(f'{file} does not define a data module: add class_path, or data with class_path')
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(BaseDataModule, 'data')
    # Renamed in jsonargparse 4.49
    instantiate = getattr(parser, 'instantiate', None) or parser.instantiate_classes
    return instantiate(parser.parse_object({'data': section})).data
