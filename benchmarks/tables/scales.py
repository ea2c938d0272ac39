"""Scales: with which models, images and lengths the rows of the tables run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .files import laid_over, make, read_yaml

SCALES = Path(__file__).parents[1] / 'conf' / 'scales'
_CONF = SCALES.parent


@dataclass(frozen=True)
class Source:
    """Weights that the rows of one objective start from.

    Attributes:
        model: Backbone name.
        weights: A `WeightsEnum` by name, or a file.
        img_size: Image side, pixels; from the model's name if None.
        learned_position: Whether position codes train in full training.
        note: What a reader must know of them.
    """

    model: str
    weights: str
    img_size: int | None = None
    learned_position: bool = True
    note: str = ''


@dataclass(frozen=True)
class Data:
    """A data set of a table at a scale.

    Attributes:
        class_path: Data module.
        init_args: Its arguments.
        stands_in: What is read instead of the table's data set; empty if it is that one.
        images: Training images, where they must be known before the data are there.
        classes: Number of classes, likewise.
        task: Class of the downstream task; `ClassificationTask` if empty.
        task_args: Its arguments.
        pretrain_args: Arguments of the data module in pre-training that differ.
    """

    class_path: str
    init_args: Mapping[str, Any] = field(default_factory=dict)
    stands_in: str = ''
    images: int | None = None
    classes: int | None = None
    task: str = ''
    task_args: Mapping[str, Any] = field(default_factory=dict)
    pretrain_args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tune:
    """Length and optimizer of one way of tuning.

    Attributes:
        batch_size: Images per step.
        steps: Optimizer steps, or None for epochs.
        epochs: Passes over the labelled images.
        optim: Fields of `OptimConfig`.
        regularisation: Fields of `Regularisation`.
        labels: Label budget.
    """

    batch_size: int
    steps: int | None = None
    epochs: int | None = None
    optim: Mapping[str, Any] = field(default_factory=dict)
    regularisation: Mapping[str, Any] = field(default_factory=dict)
    labels: str = 'all'


@dataclass(frozen=True)
class Probe:
    """What is measured on frozen features.

    Attributes:
        methods: Of `linear`, `logistic` and `knn`; the first is the table's value.
        budgets: Label budgets, as text; the first is the table's value.
        label_seeds: Draws of labels of every budget but all.
        blocks: Last blocks that the linear sweep reads.
        epochs: Epochs of the linear sweep.
        iterations: Steps per epoch of it.
        labelled: Labelled images used, evenly spaced; all of them if None.
        validated: Held-out training images used, likewise, to choose settings and learning rates.
        tested: Test images used, likewise.
    """

    methods: tuple[str, ...] = ('linear', 'knn')
    budgets: tuple[str, ...] = ('all',)
    label_seeds: int = 5
    blocks: tuple[int, ...] = (1, 4)
    epochs: int = 10
    iterations: int = 1500
    labelled: int | None = None
    validated: int | None = None
    tested: int | None = None

    def __post_init__(self) -> None:
        """Take numbers as budgets, too."""
        object.__setattr__(self, 'budgets', tuple(map(str, self.budgets)))


@dataclass(frozen=True)
class Search:
    """The same small search of the learning rate for every row, scored on held-out training images.

    Attributes:
        factors: Factors on the learning rate, rising.
        pretrain_steps: Optimizer steps of each trial of pre-training.
        tune_steps: The same of tuning.
        edge: By how much the lowest or highest factor must beat its neighbour, as a share of the images, for
            the next one beyond it to be tried too, and this one the one before to be taken; by default never.
        beyond: How many may be tried beyond.
    """

    factors: tuple[float, ...] = (0.3, 1.0, 3.0)
    pretrain_steps: int = 100
    tune_steps: int = 100
    edge: float = math.inf
    beyond: int = 2


@dataclass(frozen=True)
class Scale:
    """One scale.

    Attributes:
        name: Its name, that of its file.
        about: One sentence.
        sources: Source by objective, `M` and `D`.
        data: Data by the tables' names.
        pretrain: Values of a `Recipe` by objective; published presets if empty.
        tune: Tuning by its name, `lora` and `full`.
        probe: What is measured on frozen features.
        search: Search of learning rates, or None.
        seeds: Runs of every row.
        every: Optimizer steps between points of learning curves and between checkpoints.
        curve: Labelled images of a point of a learning curve, and as many to score; 0 draws none.
        max_rank: Highest LoRA rank; backbones are narrower than the paper's.
        trainer: Further arguments of the trainer, such as `devices`, `num_nodes` and `strategy`.
        argument: What a command takes to find it, its name if empty.
    """

    name: str
    about: str
    sources: Mapping[str, Source]
    data: Mapping[str, Data]
    pretrain: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tune: Mapping[str, Tune] = field(default_factory=dict)
    probe: Probe = Probe()
    search: Search | None = None
    seeds: int = 1
    every: int = 50
    curve: int = 0
    max_rank: int | None = None
    trainer: Mapping[str, Any] = field(default_factory=dict)
    argument: str = ''

    @property
    def published(self) -> bool:
        """Whether rows run by the published recipes, with the backbones of the paper."""
        return not self.pretrain


def read_scale(path: Path) -> Scale:
    """Read a scale from a YAML file.

    Data that are named alone (`fmow_rgb: {images: 363571}`) are those of `conf/data` and `conf/task`, or with
    `like: spacenet1` those of that name. A file with `base: small` holds what differs from that scale of this
    package; null takes a key out.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a key is unknown.
    """
    content, where = _content(path), path.name
    content['data'] = {k: _committed(k, v or {}) for k, v in content.get('data', {}).items()}
    for key, kind in (('sources', Source), ('tune', Tune), ('data', Data)):
        content[key] = {k: make(kind, v, f'{where}, {key}, {k}') for k, v in content.get(key, {}).items()}
    for key, kind in (('probe', Probe), ('search', Search)):
        if content.get(key) is not None:
            content[key] = make(kind, content[key], f'{where}, {key}')
    scale: Scale = make(Scale, {'name': path.stem, **content}, where)
    return scale


def get_scale(name: str) -> Scale:
    """A scale by name, or from a file of one's own.

    Raises:
        ValueError: If there is none.
    """
    if name.endswith('.yaml'):
        return replace(read_scale(Path(name)), argument=name)
    known = sorted(p.stem for p in SCALES.glob('*.yaml'))
    if name not in known:
        raise ValueError(f'no scale {name!r}: there are {", ".join(known)}, or give a YAML file')
    return read_scale(SCALES / f'{name}.yaml')


def _content(path: Path) -> dict[str, Any]:
    """What a file says, laid over what its base says, if it names one."""
    content = read_yaml(path, 'scale')
    base = content.pop('base', None)
    return content if base is None else laid_over(_content(SCALES / f'{base}.yaml'), content)


def _committed(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the data module and the task of the committed configurations."""
    if 'class_path' in values:
        return dict(values)
    values = dict(values)
    name = values.pop('like', name)
    data = read_yaml(_CONF / 'data' / f'{name}.yaml', 'data')['data']
    task = read_yaml(_CONF / 'task' / f'{name}.yaml', 'task')['model']
    arguments = {k: v for k, v in task['init_args'].items() if k != 'tokenizer'}  # a property of the table
    classes = arguments.pop('num_classes')
    stated = {**data, 'classes': classes, 'task': task['class_path'], 'task_args': arguments}
    return {**stated, **values, 'init_args': {**data['init_args'], **values.get('init_args', {})}}
