"""Rows of the paper's tables, read from `conf/tables`: the settings of each system and published values."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from explora_geo.adaptation import ExPLoRAConfig

from .files import find, make, read_yaml

TABLES = Path(__file__).parents[1] / 'conf' / 'tables'
#: Meaning of the letter after a published number: its source.
MARKS = {
    'W': 'workshop text of 2024',
    'I': 'ICML 2025 version, its website or scripts',
    'D': 'derived',
    'O': "another system's own publication",
}
#: The same letters for findings.
CLAIMS = {**MARKS, 'E': 'expected here, not stated there'}
_VALUE = re.compile(r'(?P<value>\d+(?:\.\d+)?)(?P<unit>M?) (?P<mark>[WIDO])')
Tuning = Literal['probe', 'linear', 'lora', 'full', 'none']


@dataclass(frozen=True)
class Published:
    """A printed number: its text with unit (empty if not published here) and its key of `MARKS`."""

    text: str = ''
    mark: str = ''

    @classmethod
    def parse(cls, text: str | None, where: str) -> 'Published':
        """Parse `79.09 W`, `15.7M W` or null."""
        if text is None:
            return cls()
        match = _VALUE.fullmatch(str(text))
        if match is None:
            how = f'a number, M for millions, and one of the marks {", ".join(MARKS)}, such as 79.09 W'
            raise ValueError(f'{where}: cannot parse {text!r}: use {how}, or null if none is published')
        return cls(match['value'] + match['unit'], match['mark'])

    @property
    def value(self) -> float | None:
        """The number, with the unit applied; None if not published here."""
        factor = 1e6 if self.text.endswith('M') else 1
        return factor * float(self.text.rstrip('M')) if self.text else None

    def __str__(self) -> str:
        """Return number and mark, or a note that there is none."""
        return f'{self.text} ({self.mark})' if self.text else 'not published here'


@dataclass(frozen=True)
class Row:
    """One system of a table."""

    id: str  # key within the table
    name: str  # name in reports
    published: Published = Published()  # its value in the table
    objective: Literal['M', 'D', ''] = ''  # source and loss: MAE, DINOv2, or none that is built here
    start: Literal['source', 'random'] = 'source'  # from the objective's source or random weights
    adaptation: str = ''  # pre-training in the paper's notation; empty for the unchanged source
    options: Mapping[str, Any] = field(default_factory=dict)  # further fields of `ExPLoRAConfig`
    tuning: Tuning = 'probe'  # what is measured: a probe, tuning, or pre-training alone
    tune: Mapping[str, Any] = field(default_factory=dict)  # overrides of the scale's `Tune`
    last_blocks: int = 0  # last blocks whose class tokens the probe reads; 0 leaves it to the scale
    head: str = ''  # name of the downstream head, instead of the data set's
    only: str = ''  # why the row cannot run, for rows that are only published
    added: bool = False  # the row is not in the paper's table
    model: str = ''  # backbone at the paper's scale, instead of its objective's
    weights: str = ''  # source weights at the paper's scale, instead of its objective's
    released: str = ''  # released weights that result from this pre-training, used at the paper's scale
    preset: str = 'paper-workshop'  # published recipe used at the paper's scale
    steps: int | None = None  # optimizer steps at the paper's scale, where the recipe does not set them
    dataset: str = ''  # data set, instead of the table's; also of pre-training if the table names none
    tokenizer: str = ''  # tokenizer, instead of the table's
    bands: tuple[str, ...] = ()  # bands of the images in order, instead of the table's
    pretrain_parameters: Published = Published()  # printed number of trainable parameters in pre-training
    tune_parameters: Published = Published()  # the same for tuning
    gpu_hours: Published = Published()  # printed hours of pre-training
    trainable: str = ''  # required trainable parameters in pre-training: exact, or such as `18.725M`

    def __post_init__(self) -> None:
        """Check that the fields are consistent."""
        if not self.only and not self.objective:
            raise ValueError('objective must be M or D, unless only says why the row cannot run')
        if self.tuning not in get_args(Tuning):
            raise ValueError(f'tuning must be one of {", ".join(get_args(Tuning))}, got {self.tuning!r}')
        if self.start == 'random' and self.adaptation != 'full':
            raise ValueError('only full pre-training can start from random weights')
        if self.last_blocks and self.tuning != 'probe':
            raise ValueError('last_blocks requires tuning: probe, got ' + self.tuning)
        if self.tune and self.tuning in ('probe', 'none'):
            raise ValueError('tune requires tuning on labels, got tuning: ' + self.tuning)
        if self.adaptation:
            _ = self.config

    @property
    def config(self) -> ExPLoRAConfig:
        """What trains in pre-training."""
        return ExPLoRAConfig.parse(self.adaptation, **self.options)


@dataclass(frozen=True)
class Finding:
    """A statement of the paper that a comparison of two rows can confirm."""

    text: str  # the statement
    mark: str  # where it is made, key of `CLAIMS`
    better: str  # row that the statement ranks higher
    worse: str  # row that it ranks lower
    equal: bool = False  # the statement is only that `better` is not below `worse`


@dataclass(frozen=True)
class Table:
    """A table of the paper."""

    id: str  # its number in the workshop text, with a letter for added tables
    title: str  # title
    dataset: str  # data set of pre-training and tuning, a name in `conf/data`
    metric: str  # metric of its values
    rows: Mapping[str, Row]  # its rows by id
    findings: tuple[Finding, ...] = ()  # what the paper concludes from it
    pretrain_dataset: str = ''  # data set of pre-training, if different
    unlabeled: bool = False  # pre-training reads the data set's unlabeled part
    tokenizer: str = 'patch'  # tokenizer
    bands: tuple[str, ...] = ()  # bands of the images in order, unless red, green and blue
    notes: tuple[str, ...] = ()  # notes for the reader
    argument: str = ''  # command-line argument that finds it; its id if empty

    def choose(self, rows: str) -> list[Row]:
        """Return rows by comma-separated ids; all rows if empty."""
        wanted = [name.strip() for name in rows.split(',') if name.strip()]
        unknown = [name for name in wanted if name not in self.rows]
        if unknown:
            raise ValueError(
                f'table {self.id} has no row {unknown[0]!r}, expected one of {", ".join(self.rows)}'
            )
        return [row for row in self.rows.values() if not wanted or row.id in wanted]


def read_table(path: Path) -> Table:
    """Read a YAML file with the fields of `Table`, row `defaults`, `rows` by id, and `findings`."""
    content = read_yaml(path, 'table')
    defaults = content.pop('defaults', {})
    rows = {
        name: _read_row(name, {**defaults, **given}, f'{path.name}, row {name}')
        for name, given in content.pop('rows', {}).items()
    }
    found = [make(Finding, f, f'{path.name}, findings') for f in content.pop('findings', ())]
    content |= {'rows': rows, 'findings': found, 'id': str(content.get('id', path.stem))}
    table: Table = make(Table, content, path.name)
    for finding in table.findings:
        for name in (finding.better, finding.worse):
            if name not in rows:
                raise ValueError(f'{path.name}: unknown row {name!r} in the finding {finding.text!r}')
    return table


def _read_row(name: str, values: dict[str, Any], where: str) -> Row:
    for key in ('published', 'pretrain_parameters', 'tune_parameters', 'gpu_hours'):
        values[key] = Published.parse(values.get(key), f'{where}, {key}')
    row: Row = make(Row, {**values, 'id': name}, where)
    return row


def read_tables(folder: Path = TABLES) -> dict[str, Table]:
    """Return all tables by id, in the paper's order."""
    return {table.id: table for table in map(read_table, sorted(folder.glob('*.yaml')))}


def get_table(name: str) -> Table:
    """Return a table by id, or from a custom YAML file."""
    if name.endswith('.yaml'):
        return replace(read_table(Path(name)), argument=name)
    table: Table = find(name, 'table', read_tables())
    return table
