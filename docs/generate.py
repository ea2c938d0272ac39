"""Writes docs/cli.md and docs/configuration.md from the code: `make docs`."""

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from docstring_parser import DocstringStyle, parse
from typer.main import get_command

from benchmarks.__main__ import app as bench
from explora_geo import adaptation, datamodules, objectives, trainers, transforms
from explora_geo.cli import app
from explora_geo.models import heads
from explora_geo.trainers.options import BackboneOptions, PretrainOptions

FOLDER = Path(__file__).parent
NOTE = '<!-- Written by docs/generate.py from the code; `make docs` writes it anew. -->\n'
#: Classes whose arguments are keys of a YAML file, by heading.
CLASSES: dict[str, list[Any]] = {
    'Tasks': [
        trainers.ExPLoRATask,
        trainers.ClassificationTask,
        trainers.SegmentationTask,
        trainers.RegressionTask,
    ],
    'Objectives': [objectives.MAE, objectives.DINOv2, objectives.PatchAlignment],
    'Groups of settings': [
        adaptation.ExPLoRAConfig,
        trainers.OptimConfig,
        trainers.Regularization,
        trainers.GuardConfig,
        objectives.TeacherConfig,
        objectives.LossConfig,
        objectives.AnchorConfig,
        objectives.GramConfig,
        objectives.PhaseConfig,
        objectives.MaskConfig,
        heads.HeadConfig,
        transforms.ViewsConfig,
        datamodules.Augment,
        datamodules.Statistics,
    ],
    'Data modules': [
        getattr(datamodules, name)
        for name in datamodules.__all__
        if name.endswith('DataModule') and name != 'TileDataModule'
    ],
}


def one_line(text: str | None) -> str:
    """A text for a cell of a table."""
    return ' '.join((text or '').split()).replace('|', '\\|')


def shown(value: Any) -> str:
    """A default value for a cell of a table."""
    if value is None or value is False or value == '':
        return ''
    if is_dataclass(value) and not isinstance(value, type):
        return f'`{type(value).__name__}()`'
    text = ', '.join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return f'`{text}`' if text else ''


def commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Every command below one, by its whole name."""
    if hasattr(command, 'commands'):
        for part, inner in command.commands.items():
            yield from commands(f'{name} {part}', inner)
    else:
        yield name, command


def describe(name: str, command: Any) -> list[str]:
    """Heading, text, example and options of a command."""
    text = textwrap.dedent(command.help or '')
    about, _, example = text.partition(next(iter(re.findall(r'Examples?:', text)), '\0'))
    lines = [f'### `{name}`', '', *(' '.join(p.split()) + '\n' for p in about.split('\n\n') if p.strip())]
    found = [' '.join(p.split()) for p in re.split(r'\n\s*\n', example) if p.strip()]
    lines += ['```sh', *found, '```', '']
    rows = []
    for parameter in command.params:
        if parameter.name == 'help':
            continue
        argument = not any(o.startswith('-') for o in parameter.opts)
        label = parameter.name.upper() if argument else ' / '.join(parameter.opts + parameter.secondary_opts)
        default = 'required' if parameter.required else shown(parameter.default)
        rows.append(f'| `{label}` | {default} | {one_line(parameter.help)} |')
    return [*lines, *(['| | default | |', '|---|---|---|', *rows, ''] if rows else [])]


def described(name: str, app: Any) -> list[str]:
    """All commands of a command line."""
    return [line for found in commands(name, get_command(app)) for line in describe(*found)]


def cli() -> str:
    """The reference of both command lines."""
    lines = [
        *('# Command line', '', NOTE),
        'Every command takes `--help`; `--debug` anywhere shows the traceback of an error. User errors',
        'are one sentence on the standard error and exit code 2. Shell completion: `--install-completion`.',
        *('', '## `explora-geo`', ''),
        '`fit`, `validate`, `test` and `predict` are LightningCLI: their options are the keys of',
        '[configurations](configuration.md), on the command line or in a YAML file.',
        '',
    ]
    lines += described('explora-geo', app)
    lines += [
        '## `explora-bench`',
        '',
        'Measurements behind the numbers, run in a clone of the repository.',
        '',
    ]
    lines += described('explora-bench', bench)
    return '\n'.join(lines).rstrip() + '\n'


def arguments(cls: Any) -> dict[str, tuple[str, str]]:
    """Default and description of every argument of a class, with those that it hands to its parent."""
    found: dict[str, tuple[str, str]] = {}
    if is_dataclass(cls):
        texts = {
            p.arg_name: p.description
            for owner in reversed(cls.__mro__)
            for p in parse(owner.__doc__ or '', DocstringStyle.GOOGLE).params
        }
        for field in fields(cls):
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            found[field.name] = (shown(default), one_line(texts.get(field.name)))
        return found
    for owner in cls.__mro__:
        if '__init__' not in vars(owner) or not owner.__module__.startswith('explora_geo'):
            continue
        texts = {
            p.arg_name: p.description
            for p in parse(owner.__init__.__doc__ or '', DocstringStyle.GOOGLE).params
        }
        signature = inspect.signature(owner.__init__).parameters
        for name, parameter in signature.items():
            if (
                name in ('self', 'backbone', 'dataset', 'dataset_class')
                or parameter.kind is parameter.VAR_KEYWORD
            ):
                continue
            required = parameter.default is parameter.empty
            found.setdefault(
                name, ('required' if required else shown(parameter.default), one_line(texts.get(name)))
            )
        if 'backbone' in signature and signature['backbone'].kind is inspect.Parameter.VAR_KEYWORD:
            options = PretrainOptions if cls is trainers.ExPLoRATask else BackboneOptions
            return {**found, **arguments(options)}
        if not any(p.kind is p.VAR_KEYWORD for p in signature.values()):
            break
    return found


def configuration() -> str:
    """The reference of the keys of YAML files."""
    lines = [
        *('# Configurations', '', NOTE),
        'A run is a YAML file for `explora-geo fit`: `trainer` (of Lightning, see `explora-geo fit --help`),',
        '`model` (a task) and `data` (a data module), both by `class_path` and `init_args`. Examples',
        'that the tests run lie in [tests/conf](../tests/conf). Every key is also an option, such as',
        '`--data.batch_size 32`; `--print_config` prints all of them, `--dry-run` shows what a run would do.',
        '',
    ]
    for heading, classes in CLASSES.items():
        lines += [f'## {heading}', '']
        for cls in classes:
            about = one_line((cls.__doc__ or '').split('\n\n')[0])
            lines += [f'### `{cls.__name__}`', '', about, '', '| key | default | |', '|---|---|---|']
            rows = arguments(cls)
            lines += [f'| `{name}` | {default} | {text} |' for name, (default, text) in rows.items()]
            lines.append('')
    return '\n'.join(lines).rstrip() + '\n'


#: What is written, by file name.
PAGES = {'cli.md': cli, 'configuration.md': configuration}

if __name__ == '__main__':
    for page, write in PAGES.items():
        (FOLDER / page).write_text(write(), encoding='utf-8')
