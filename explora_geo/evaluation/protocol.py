"""The whole protocol of frozen features: methods x label budgets x seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from explora_geo.evaluation.budgets import Budget
from explora_geo.evaluation.features import FeatureTable
from explora_geo.evaluation.intervals import bootstrap_interval
from explora_geo.evaluation.probes import knn_hits, logistic_hits
from explora_geo.evaluation.sweep import SweepConfig, SweepRow, linear_sweep

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
    """

    budgets: tuple[Budget, ...] = (Budget(),)
    seeds: int = 5
    methods: tuple[str, ...] = METHODS
    sweep: SweepConfig = field(default_factory=SweepConfig)
    few_iterations: int = 150
    neighbours: int = 5

    def __post_init__(self) -> None:
        """Check the values."""
        unknown = [m for m in self.methods if m not in METHODS]
        if unknown or not self.methods:
            raise ValueError(f'methods must be among {", ".join(METHODS)}, got {", ".join(self.methods)}')
        for name in ('seeds', 'few_iterations', 'neighbours'):
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
    """

    scores: list[ProbeScore]
    sweep: list[SweepRow]


def run_probes(
    train: FeatureTable,
    val: FeatureTable,
    test: FeatureTable,
    protocol: ProbeProtocol,
    classes: Sequence[str] = (),
    progress: Callable[[str], None] = lambda text: None,
) -> ProbeOutcome:
    """Measure frozen features.

    Every setting is chosen on the validation part and reported on the test part.

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
        ValueError: If there is one class only, or a class lacks training images.
    """
    _check_classes(train, val, test, classes)
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
        parts = [(t.arrays(), t.label.numpy()) for t in (drawn, val, test)]
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
    return ProbeOutcome(scores, sweep)


def _check_classes(
    train: FeatureTable, val: FeatureTable, test: FeatureTable, classes: Sequence[str]
) -> None:
    present = set(train.label.tolist())
    if len(present) < 2:
        raise ValueError(
            f'a probe needs at least two classes, but the training images have {len(present)}: give images '
            'of several classes'
        )
    for name, table in (('validation', val), ('test', test)):
        absent = sorted(set(table.label.tolist()) - present)
        if absent:
            shown = ', '.join(classes[i] if i < len(classes) else str(i) for i in absent[:5])
            raise ValueError(
                f'{len(absent)} classes of the {name} images have no training images ({shown}): give '
                'training images of every class'
            )
