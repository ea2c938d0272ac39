"""Rows of the paper's tables, read from `conf/tables`: what each system does, and what was published."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from explora_geo.adaptation import ExPLoRAConfig

from .files import make, read_yaml

TABLES = Path(__file__).parents[1] / 'conf' / 'tables'
#: What the letter after a published number says of its source.
MARKS = {
    'W': 'workshop text of 2024',
    'I': 'ICML 2025 version, its website or scripts',
    'D': 'derived',
    'O': "another system's own publication",
}
#: The same of findings.
CLAIMS = {**MARKS, 'E': 'expected here, not stated there'}
_VALUE = re.compile(r'(?P<value>\d+(?:\.\d+)?)(?P<unit>M?) (?P<mark>[WIDO])')
Tuning = Literal['probe', 'linear', 'lora', 'full', 'none']


@dataclass(frozen=True)
class Published:
    """A printed number: its text with a unit, empty if it is not published here, and its key of `MARKS`."""

    text: str = ''
    mark: str = ''

    @classmethod
    def parse(cls, text: str | None, where: str) -> 'Published':
        """Read `79.09 W`, `15.7M W` or null.

        Raises:
            ValueError: If the text is none of these.
        """
        if text is None:
            return cls()
        match = _VALUE.fullmatch(str(text))
        if match is None:
            raise ValueError(
                f'{where}: cannot read {text!r}: write the number, M for millions, and one of the marks '
                f'{", ".join(MARKS)}, such as 79.09 W, or null for what is not published'
            )
        return cls(match['value'] + match['unit'], match['mark'])

    @property
    def value(self) -> float | None:
        """The number, in units; None if it is not published here."""
        factor = 1e6 if self.text.endswith('M') else 1
        return factor * float(self.text.rstrip('M')) if self.text else None

    def __str__(self) -> str:
        """Number and mark, or that there is none."""
        return f'{self.text} ({self.mark})' if self.text else 'not published here'


@dataclass(frozen=True)
class Row:
    """One system of a table.

    Attributes:
        id: Key within the table.
        name: What reports call it.
        published: Its value in the table.
        objective: `M` (MAE) or `D` (DINOv2): source and loss; empty for systems that are not built here.
        start: Start from the source of that objective, or from random weights.
        adaptation: Pre-training on the new domain in the paper's notation; empty for the source as it is.
        options: Further fields of `ExPLoRAConfig`: `targets`, `train_norms`, `alpha`.
        tuning: What is measured: a linear probe, tuning (linear, LoRA, full), or pre-training alone.
        tune: Fields of the scale's `Tune` that differ, such as `labels` and `steps`.
        last_blocks: Last blocks whose class tokens the probe reads; the scale's choice if 0.
        head: Head of the downstream task by name, instead of the data set's.
        only: Why the row cannot be run, for rows that are published only.
        added: The row is not in the paper's table.
        model: Backbone at the paper's scale, instead of its objective's.
        weights: Source weights there, instead of its objective's.
        released: Released weights that are the outcome of this pre-training, used there.
        preset: Published recipe used there.
        steps: Optimizer steps used there, where the recipe does not say.
        dataset: Data set, instead of the table's; of pre-training too, if the table names none for it.
        tokenizer: How images become tokens, instead of the table's.
        bands: Bands of the images in order, instead of the table's.
        pretrain_parameters: Printed number of parameters that train in pre-training.
        tune_parameters: The same in tuning.
        gpu_hours: Printed hours of pre-training.
        trainable: Number that the model built for pre-training must have: exact, or millions to three
            decimals such as `18.725M`.
    """

    id: str
    name: str
    published: Published = Published()
    objective: Literal['M', 'D', ''] = ''
    start: Literal['source', 'random'] = 'source'
    adaptation: str = ''
    options: Mapping[str, Any] = field(default_factory=dict)
    tuning: Tuning = 'probe'
    tune: Mapping[str, Any] = field(default_factory=dict)
    last_blocks: int = 0
    head: str = ''
    only: str = ''
    added: bool = False
    model: str = ''
    weights: str = ''
    released: str = ''
    preset: str = 'paper-workshop'
    steps: int | None = None
    dataset: str = ''
    tokenizer: str = ''
    bands: tuple[str, ...] = ()
    pretrain_parameters: Published = Published()
    tune_parameters: Published = Published()
    gpu_hours: Published = Published()
    trainable: str = ''

    def __post_init__(self) -> None:
        """Check what belongs together."""
        if not self.only and not self.objective:
            raise ValueError('a row that runs needs an objective, M or D; say only: why if it cannot run')
        if self.tuning not in get_args(Tuning):
            raise ValueError(f'tuning must be one of {", ".join(get_args(Tuning))}, got {self.tuning!r}')
        if self.start == 'random' and self.adaptation != 'full':
            raise ValueError('only a full pre-training can start from random weights')
        if self.last_blocks and self.tuning != 'probe':
            raise ValueError('last_blocks is of a probe: it does not fit the tuning ' + self.tuning)
        if self.tune and self.tuning in ('probe', 'none'):
            raise ValueError('tune is of tuning on labels: it does not fit the tuning ' + self.tuning)
        if self.adaptation:
            _ = self.config

    @property
    def config(self) -> ExPLoRAConfig:
        """What trains in pre-training."""
        return ExPLoRAConfig.parse(self.adaptation, **self.options)


@dataclass(frozen=True)
class Finding:
    """A statement of the paper that two rows of a table can bear out or not.

    Attributes:
        text: The statement.
        mark: Where it is made, key of `CLAIMS`.
        better: Row that the statement puts above the other.
        worse: The other.
        equal: The statement is that `better` is not below `worse`.
    """

    text: str
    mark: str
    better: str
    worse: str
    equal: bool = False


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        id: Its number in the workshop text, a letter after it for tables that are added.
        title: What it shows.
        dataset: Data set of pre-training and tuning, a name in `conf/data`.
        metric: What its values are.
        rows: Its rows by id.
        findings: What the paper reads from it.
        pretrain_dataset: Data set of pre-training, if it is another.
        unlabelled: Pre-training reads the data set's unlabelled part.
        tokenizer: How images become tokens.
        bands: Bands of the images, in order, where they are not red, green and blue.
        notes: What a reader must know.
        argument: What a command takes to find it, its id if empty.
    """

    id: str
    title: str
    dataset: str
    metric: str
    rows: Mapping[str, Row]
    findings: tuple[Finding, ...] = ()
    pretrain_dataset: str = ''
    unlabelled: bool = False
    tokenizer: str = 'patch'
    bands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    argument: str = ''

    def choose(self, rows: str) -> list[Row]:
        """Rows by their ids, separated by commas; all of them if empty.

        Raises:
            ValueError: If there is no such row.
        """
        wanted = [name.strip() for name in rows.split(',') if name.strip()]
        unknown = [name for name in wanted if name not in self.rows]
        if unknown:
            raise ValueError(f'table {self.id} has no row {unknown[0]!r}: it has {", ".join(self.rows)}')
        return [row for row in self.rows.values() if not wanted or row.id in wanted]


def read_table(path: Path) -> Table:
    """Read a YAML file: the fields of `Table`, `defaults` of its rows, `rows` by id, and `findings`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a key or value does not fit.
    """
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
                raise ValueError(f'{path.name}: the finding {finding.text!r} names no row of it: {name!r}')
    return table


def _read_row(name: str, values: dict[str, Any], where: str) -> Row:
    for key in ('published', 'pretrain_parameters', 'tune_parameters', 'gpu_hours'):
        values[key] = Published.parse(values.get(key), f'{where}, {key}')
    row: Row = make(Row, {**values, 'id': name}, where)
    return row


def read_tables(folder: Path = TABLES) -> dict[str, Table]:
    """Every table by id, in the paper's order."""
    return {table.id: table for table in map(read_table, sorted(folder.glob('*.yaml')))}


def get_table(name: str) -> Table:
    """A table by id, or from a YAML file of one's own.

    Raises:
        ValueError: If there is none.
    """
    if name.endswith('.yaml'):
        return replace(read_table(Path(name)), argument=name)
    tables = read_tables()
    if name not in tables:
        raise ValueError(f'no table {name!r}: there are {", ".join(tables)}, or give a YAML file')
    return tables[name]
