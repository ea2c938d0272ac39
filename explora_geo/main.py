"""LightningCLI over TorchGeo's and our tasks and datamodules."""

from typing import Any

from lightning.pytorch.cli import ArgsType, LightningCLI
from torchgeo.datamodules import BaseDataModule

import explora_geo.datamodules
import explora_geo.trainers  # noqa: F401 - lets a YAML name classes by their class name alone
from explora_geo import __version__
from explora_geo._compat import BaseTask
from explora_geo.checkpoints.files import read_checkpoint

# What the help of a subcommand ends with
_EXAMPLES = {
    name: {'epilog': f'Example: explora-geo {name} --config run.yaml{more}'}
    for name, more in (
        ('fit', ' --dry-run'),
        ('validate', ' --ckpt_path last.ckpt'),
        ('test', ' --ckpt_path last.ckpt'),
        ('predict', ' --ckpt_path last.ckpt'),
    )
}


class _Checked(LightningCLI):
    """LightningCLI that runs no code of checkpoints, and refuses what cannot be read before it starts."""

    def parse_arguments(self, parser: Any, args: ArgsType) -> None:
        """Read the configuration, and look at the checkpoint that it names."""
        super().parse_arguments(parser, args)
        options = self.config.get(self.config.get('subcommand')) or {}
        path = options.get('ckpt_path')
        if path is not None and path not in ('last', 'best', 'hpc') and '://' not in str(path):
            read_checkpoint(path, mmap=True)
        if options.get('weights_only') is None:
            options['weights_only'] = True  # Lightning would unpickle what it downloads


class _Prepared(_Checked):
    """The same command, made ready and not started."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Start nothing."""


def run(args: ArgsType = None, start: bool = True, **kwargs: Any) -> LightningCLI:
    """Run one Lightning subcommand.

    Args:
        args: `fit`, `validate`, `test` or `predict` with the options of LightningCLI.
        start: False makes trainer, model and datamodule, and leaves it at that.
        **kwargs: Further arguments of `LightningCLI`.

    Returns:
        The finished command, with `trainer`, `model` and `datamodule`.

    Raises:
        jsonargparse.ArgumentError: If a key or value of the configuration is unknown.
    """
    return (_Checked if start else _Prepared)(
        model_class=BaseTask,
        datamodule_class=BaseDataModule,
        seed_everything_default=0,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_kwargs={'overwrite': True},
        parser_kwargs={'version': __version__, 'exit_on_error': False, **_EXAMPLES},
        args=args,
        **kwargs,
    )
