"""The whole protocol of frozen features: methods x label budgets x seeds."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from explora_geo.evaluation.budgets import Budget
from explora_geo.evaluation.cache import extract_parts
from explora_geo.evaluation.features import FeatureTable
from explora_geo.evaluation.intervals import bootstrap_interval
from explora_geo.evaluation.probes import knn_hits, logistic_hits
from explora_geo.evaluation.sweep import SweepConfig, SweepRow, linear_sweep
from explora_geo.models.vit import ViT

#: Methods by the name that options and reports use.
METHODS = ('linear', 'logistic', 'knn')


@dataclass(frozen=True)
class ProbeProtocol:
    """What is measured on frozen features.

    Attributes:
        budgets: Label budgets.
        seeds: Draws of labels for every budget but `all`.
        methods: `linear` (the paper's sweep), `logistic` (regression), `knn`.
        sweep: The sweep with all labels.
        few_iterations: Steps per epoch of the sweep with few labels.
        neighbours: k of k-NN.
        last_blocks: Last blocks whose class tokens `logistic` and `knn` read; with one, the mean patch token
            of the last block is a second choice.
    """

    budgets: tuple[Budget, ...] = (Budget(),)
    seeds: int = 5
    methods: tuple[str, ...] = METHODS
    sweep: SweepConfig = field(default_factory=SweepConfig)
    few_iterations: int = 150
    neighbours: int = 5
    last_blocks: int = 1

    def __post_init__(self) -> None:
        """Check the values."""
        unknown = [m for m in self.methods if m not in METHODS]
        if unknown or not self.methods:
            raise ValueError(f'methods must be among {", ".join(METHODS)}, got {", ".join(self.methods)}')
        for name in ('seeds', 'few_iterations', 'neighbours', 'last_blocks'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be at least 1, got {getattr(self, name)}')


class ProbeScore(NamedTuple):
    """Test accuracy of one method with one label budget.

    Attributes:
        method: Name of the method.
        budget: Label budget.
        accuracies: One per seed, in [0, 1].
        interval: Bootstrap interval over seeds and test images, lower and upper end.
        settings: What validation chose, one per seed.
        validations: Validation accuracy of it, one per seed.
        labels: Training labels used.
    """

    method: str
    budget: Budget
    accuracies: list[float]
    interval: tuple[float, float]
    settings: list[str]
    validations: list[float]
    labels: int

    @property
    def mean(self) -> float:
        """Mean accuracy over seeds."""
        return float(np.mean(self.accuracies))

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON-ready values."""
        return {**self._asdict(), 'budget': str(self.budget), 'mean': self.mean}


class ProbeOutcome(NamedTuple):
    """Everything measured.

    Attributes:
        scores: One per method and budget.
        sweep: Every configuration of the paper's sweep with all labels; empty if it was not run.
        absent: Validation and test images of classes that no training image has, by class name and part;
            they count as wrong.
    """

    scores: list[ProbeScore]
    sweep: list[SweepRow]
    absent: dict[str, dict[str, int]] = {}  # noqa: RUF012 - never changed in place


def probe(
    vit: ViT,
    datamodule: Any,
    protocol: ProbeProtocol,
    cache: Path | None = None,
    *,
    statistics: Literal['model', 'data'] | None = None,
    turns: int = 1,
    batch_size: int = 128,
    num_workers: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[ProbeOutcome, dict[str, FeatureTable]]:
    """Measure the frozen features of a backbone on a data module.

    Args:
        vit: Backbone, on the device where it runs.
        datamodule: Data module of ours or of TorchGeo.
        protocol: What is measured.
        cache: Folder of cached features; None keeps none.
        statistics: Whose mean and standard deviation normalize; see `match_data`.
        turns: Orientations of a tile that features are averaged over: 1, 4 or 8.
        batch_size: Images per forward pass.
        num_workers: Processes that read images.
        progress: Told what is done next.

    Returns:
        What was measured, and the features of `train`, `val` and `test`.

    Raises:
        ValueError: If there is no test part, or the data do not fit the backbone.
    """
    options = {'turns': turns, 'batch_size': batch_size, 'num_workers': num_workers}
    tables = extract_parts(vit, datamodule, cache, progress, statistics, **options)
    classes = tuple(getattr(datamodule.train_dataset, 'classes', ()))
    outcome = run_probes(tables['train'], tables['val'], tables['test'], protocol, classes, progress)
    return outcome, tables


def describe_plan(datamodule: Any, protocol: ProbeProtocol) -> str:
    """How much there is to do, in one sentence."""
    for stage in ('fit', 'test'):
        datamodule.setup(stage)
    found = {part: getattr(datamodule, f'{part}_dataset', None) for part in ('train', 'val', 'test')}
    images = ', '.join(f'{part} {len(data):,}' for part, data in found.items() if data is not None)
    fits = sum(1 if str(b) == 'all' else protocol.seeds for b in protocol.budgets)
    return (
        f'images: {images}; each passes the backbone once, then {", ".join(protocol.methods)} for '
        f'{fits} draws of labels; nothing was written'
    )


def run_probes(
    train: FeatureTable,
    val: FeatureTable,
    test: FeatureTable,
    protocol: ProbeProtocol,
    classes: Sequence[str] = (),
    progress: Callable[[str], None] = lambda text: None,
) -> ProbeOutcome:
    """Measure frozen features.

    Every setting is chosen on the validation part and reported on the test part. Images of a class that no
    training image has count as wrong in both.

    Args:
        train: Features whose labels are drawn from.
        val: Features that choose settings.
        test: Features that are reported.
        protocol: What is measured.
        classes: Names of the classes, for messages.
        progress: Told what is done next.

    Returns:
        Scores, and the sweep's configurations.

    Raises:
        ValueError: If the training images have one class only.
    """
    absent = _absent_classes(train, {'validation': val, 'test': test}, classes)
    sweep: list[SweepRow] = []

    def measure(method: str, drawn: FeatureTable, full: bool) -> tuple[NDArray[np.bool_], float, str]:
        if method == 'linear':
            config = protocol.sweep
            if not full:
                config = replace(config, iterations=min(config.iterations, protocol.few_iterations))
            result = linear_sweep(drawn, val, test, config)
            if full:
                sweep.extend(result.rows)
            return result.hits, result.best.validation, result.best.setting
        parts = [(t.arrays(protocol.last_blocks), t.label.numpy()) for t in (drawn, val, test)]
        if method == 'logistic':
            return logistic_hits(*parts[0], *parts[1], *parts[2])
        return knn_hits(*parts[0], *parts[1], *parts[2], k=protocol.neighbours)

    scores = []
    for budget in protocol.budgets:
        for method in protocol.methods:
            outcomes, labels = [], 0
            for seed in range(1 if budget.full else protocol.seeds):
                progress(f'{method}, {budget} labels, seed {seed}')
                drawn = train.take(budget.draw(train.label, seed))
                labels = len(drawn.label)
                outcomes.append(measure(method, drawn, budget.full))
            hits, validations, settings = (list(column) for column in zip(*outcomes, strict=True))
            accuracies = [float(np.mean(h)) for h in hits]
            interval = bootstrap_interval(hits)
            scores.append(ProbeScore(method, budget, accuracies, interval, settings, validations, labels))
    return ProbeOutcome(scores, sweep, absent)


def _absent_classes(
    train: FeatureTable, others: Mapping[str, FeatureTable], classes: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Number of images by class and part, of classes that no training image has."""
    present = set(train.label.tolist())
    if len(present) < 2:
        raise ValueError(
            f'a probe needs at least two classes, but the training images have {len(present)}: give images '
            'of several classes'
        )
    absent: dict[str, dict[str, int]] = {}
    for part, table in others.items():
        for label, count in sorted(Counter(table.label.tolist()).items()):
            if label not in present:
                name = classes[label] if label < len(classes) else str(label)
                absent.setdefault(name, {})[part] = count
    return absent


def describe_absent(absent: Mapping[str, Mapping[str, int]]) -> str:
    """One sentence on classes without training images; empty if there are none."""
    if not absent:
        return ''
    named = ', '.join(
        f'{name} ({" and ".join(f"{count} {part}" for part, count in counts.items())})'
        for name, counts in absent.items()
    )
    return f'Classes without training images, whose images count as wrong: {named}.'
