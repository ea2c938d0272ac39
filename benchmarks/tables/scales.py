"""Scales: the models, images and lengths with which the rows of the tables run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .files import find, laid_over, make, read_yaml

SCALES = Path(__file__).parents[1] / 'conf' / 'scales'
_CONF = SCALES.parent


@dataclass(frozen=True)
class Source:
    """Starting weights for the rows of one objective."""

    model: str  # backbone name
    weights: str  # a `WeightsEnum` by name, or a file
    img_size: int | None = None  # image side, pixels; from the model's name if None
    learned_position: bool = True  # whether position codes train in full training
    note: str = ''  # note for the reader


@dataclass(frozen=True)
class Data:
    """A data set of a table at a scale."""

    class_path: str  # data module
    init_args: Mapping[str, Any] = field(default_factory=dict)  # its arguments
    stands_in: str = ''  # what is read instead of the table's data set; empty if it is that data set
    images: int | None = None  # training images, if needed before the data are available
    classes: int | None = None  # number of classes, if needed before the data are available
    task: str = ''  # class of the downstream task; `ClassificationTask` if empty
    task_args: Mapping[str, Any] = field(default_factory=dict)  # its arguments
    pretrain_args: Mapping[str, Any] = field(default_factory=dict)  # overrides for pre-training


@dataclass(frozen=True)
class Tune:
    """Length and optimizer of one way of tuning."""

    batch_size: int  # images per step
    steps: int | None = None  # optimizer steps, or None for epochs
    epochs: int | None = None  # passes over the labeled images
    optim: Mapping[str, Any] = field(default_factory=dict)  # fields of `OptimConfig`
    regularisation: Mapping[str, Any] = field(default_factory=dict)  # fields of `Regularization`
    labels: str = 'all'  # label budget


@dataclass(frozen=True)
class Probe:
    """Evaluation of frozen features."""

    methods: tuple[str, ...] = ('linear', 'knn')  # or `logistic`; the first is the table's value
    budgets: tuple[str, ...] = ('all',)  # label budgets, as text; the first is the table's value
    label_seeds: int = 5  # draws of labels for every budget except all
    blocks: tuple[int, ...] = (1, 4)  # last blocks read by the linear sweep
    epochs: int = 10  # epochs of the linear sweep
    iterations: int = 1500  # steps per epoch of the linear sweep
    labeled: int | None = None  # labeled images used, evenly spaced; None uses all
    validated: int | None = None  # held-out training images used to choose settings, also evenly spaced
    tested: int | None = None  # test images used, evenly spaced; None uses all

    def __post_init__(self) -> None:
        """Accept numbers as budgets."""
        object.__setattr__(self, 'budgets', tuple(map(str, self.budgets)))


@dataclass(frozen=True)
class Search:
    """Search of the learning rate, the same for every row, scored on held-out training images."""

    factors: tuple[float, ...] = (0.3, 1.0, 3.0)  # factors on the learning rate, ascending
    pretrain_steps: int = 100  # optimizer steps of each trial of pre-training
    tune_steps: int = 100  # optimizer steps of each trial of tuning
    edge: float = math.inf  # margin, a share of the images, by which an end must win to try the next
    beyond: int = 2  # maximum number of factors tried beyond the ends


@dataclass(frozen=True)
class Scale:
    """One scale."""

    name: str  # name, that of its file
    about: str  # one sentence
    sources: Mapping[str, Source]  # source by objective, `M` and `D`
    data: Mapping[str, Data]  # data by name in the tables
    pretrain: Mapping[str, Any] = field(default_factory=dict)  # `Recipe` by objective, if not published
    tune: Mapping[str, Tune] = field(default_factory=dict)  # tuning by its name, `lora` and `full`
    probe: Probe = Probe()  # evaluation of frozen features
    search: Search | None = None  # search of learning rates, or None
    seeds: int = 1  # runs of every row
    every: int = 50  # optimizer steps between points of learning curves and between checkpoints
    curve: int = 0  # labeled images per point of a learning curve, and as many to score; 0 draws none
    max_rank: int | None = None  # highest LoRA rank, for backbones narrower than the paper's
    trainer: Mapping[str, Any] = field(default_factory=dict)  # further trainer arguments, such as `devices`
    argument: str = ''  # command-line argument that finds it; its name if empty

    @property
    def published(self) -> bool:
        """Whether rows run the published recipes with the paper's backbones."""
        return not self.pretrain


def read_scale(path: Path) -> Scale:
    """Read a scale from a YAML file.

    Data given by name alone (`fmow_rgb: {images: 363571}`) come from `conf/data` and `conf/task`;
    `like: spacenet1` uses the files of that name. A file with `base: small` overrides that scale of this
    package; null removes a key.
    """
    content, where = _content(path), path.name
    content['data'] = {k: _committed(k, v or {}) for k, v in content.get('data', {}).items()}
    groups: Any = ('sources', Source), ('tune', Tune), ('data', Data)
    for key, kind in groups:
        content[key] = {k: make(kind, v, f'{where}, {key}, {k}') for k, v in content.get(key, {}).items()}
    for key, kind in {'probe': Probe, 'search': Search}.items():
        if content.get(key) is not None:
            content[key] = make(kind, content[key], f'{where}, {key}')
    scale: Scale = make(Scale, {'name': path.stem, **content}, where)
    return scale


def get_scale(name: str) -> Scale:
    """Return a scale by name, or from a custom file."""
    if name.endswith('.yaml'):
        return replace(read_scale(Path(name)), argument=name)
    return read_scale(find(name, 'scale', {p.stem: p for p in sorted(SCALES.glob('*.yaml'))}))


def _content(path: Path) -> dict[str, Any]:
    """Read a file and merge it over its base, if it names one."""
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
    arguments = {k: v for k, v in task['init_args'].items() if k != 'tokenizer'}  # set by the table
    classes = arguments.pop('num_classes')
    stated = {**data, 'classes': classes, 'task': task['class_path'], 'task_args': arguments}
    return {**stated, **values, 'init_args': {**data['init_args'], **values.get('init_args', {})}}
