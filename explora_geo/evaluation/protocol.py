"""The whole protocol of frozen features, methods x label budgets x seeds, and its reports."""

import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from explora_geo.checkpoints import atomic_path
from explora_geo.evaluation.features import FeatureTable, extract_parts
from explora_geo.evaluation.probes import Budget, bootstrap_interval, knn_hits, logistic_hits
from explora_geo.evaluation.sweep import SweepConfig, SweepRow, linear_sweep
from explora_geo.models.vit import ViT

#: Methods by the name that options and reports use.
METHODS = ('linear', 'logistic', 'knn')
#: Columns of torchgeo-bench's result files, as far as frozen classification has them.
BENCH_COLUMNS = (
    *('dataset', 'method', 'metric_name', 'metric_value', 'ci_lower', 'ci_upper', 'feature_dim', 'best_c'),
    *('best_lr', 'best_batch_size', 'n_train', 'n_val', 'n_test', 'seed', 'model', 'name', 'normalization'),
    *('image_size', 'interpolation', 'partition', 'bands', 'c_range_start', 'c_range_stop', 'c_range_num'),
    *('merge_val', 'bootstrap'),
)


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

    @property
    def chosen(self) -> str:
        """The setting that most seeds chose."""
        return max(self.settings, key=self.settings.count)

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
    fits = sum(1 if b.full else protocol.seeds for b in protocol.budgets)
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
            least = min(protocol.sweep.iterations, protocol.few_iterations)
            config = protocol.sweep if full else replace(protocol.sweep, iterations=least)
            result = linear_sweep(drawn, val, test, config)
            sweep.extend(result.rows if full else ())
            return result.hits, result.best.validation, result.best.setting
        a, b, c = ((t.arrays(protocol.last_blocks), t.label.numpy()) for t in (drawn, val, test))
        return logistic_hits(a, b, c) if method == 'logistic' else knn_hits(a, b, c, protocol.neighbours)

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
            accuracies, interval = [float(np.mean(h)) for h in hits], bootstrap_interval(hits)
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
    named = (
        f'{name} ({" and ".join(f"{count} {part}" for part, count in counts.items())})'
        for name, counts in absent.items()
    )
    sentence = f'Classes without training images, whose images count as wrong: {", ".join(named)}.'
    return sentence if absent else ''


def write_reports(
    folder: str | Path, outcome: ProbeOutcome, protocol: ProbeProtocol, about: Mapping[str, Any]
) -> list[Path]:
    """Write every report: `probe.json`, `.csv`, `.md`, `.png`, and torchgeo-bench's rows.

    Args:
        folder: Folder to write.
        outcome: What was measured.
        protocol: How.
        about: What was measured: `name`, `dataset`, `weights`, `bands`, `image_size`, `feature_dim`,
            `images` (number by part), `skipped`.

    Returns:
        The files.
    """
    sweep = protocol.sweep
    content = {
        **about,
        'protocol': {
            'learning_rates': list(sweep.learning_rates),
            'blocks': list(sweep.blocks),
            'steps': sweep.epochs * sweep.iterations,
            'steps_few_labels': sweep.epochs * min(sweep.iterations, protocol.few_iterations),
            'batch_size': sweep.batch_size,
            'neighbours': protocol.neighbours,
            'seeds': protocol.seeds,
        },
        'scores': [s.to_dict() for s in outcome.scores],
        'sweep': [{'setting': r.setting, **r._asdict()} for r in outcome.sweep],
        'absent_classes': outcome.absent,
    }
    files = {
        'probe.json': json.dumps(content, indent=1).encode(),
        'probe.csv': _csv(outcome.scores).encode(),
        'probe.md': markdown(outcome, about).encode(),
        'torchgeo_bench.csv': bench_csv(outcome.scores, protocol, about).encode(),
        'probe.png': _plot(outcome.scores, f'{about["name"]} on {about["dataset"]}'),
    }
    for name, data in files.items():
        with atomic_path(Path(folder) / name) as temporary:
            temporary.write_bytes(data)
    return [Path(folder) / name for name in files]


def markdown(outcome: ProbeOutcome, about: Mapping[str, Any]) -> str:
    """Tables of scores and of the sweep's best configurations."""
    images = ', '.join(f'{count} {part}' for part, count in about['images'].items())
    lines = [
        f'# Frozen features of {about["name"]} on {about["dataset"]}',
        '',
        f'Images: {images}. Settings are chosen on validation and reported on test; intervals are 95 % '
        'percentile bootstraps over label draws and test images.',
        '',
        '| labels | number | method | test accuracy, % | interval | seeds | chosen setting |',
        '|---|---|---|---|---|---|---|',
    ]
    for score in outcome.scores:
        low, high = score.interval
        lines.append(
            f'| {score.budget} | {score.labels} | {score.method} | {100 * score.mean:.2f} | '
            f'{100 * low:.2f} to {100 * high:.2f} | {len(score.accuracies)} | {score.chosen} |'
        )
    if outcome.sweep:
        lines += ['', '| configuration, all labels | validation, % | test, % |', '|---|---|---|']
        ranked = sorted(outcome.sweep, key=lambda r: -r.validation)
        lines += [f'| {r.setting} | {100 * r.validation:.2f} | {100 * r.test:.2f} |' for r in ranked]
    if outcome.absent:
        lines += ['', describe_absent(outcome.absent)]
    if about.get('skipped'):
        lines += ['', 'Skipped: ' + '; '.join(about['skipped'])]
    return '\n'.join([*lines, ''])


def _csv(scores: Sequence[ProbeScore]) -> str:
    columns = ['budget', 'labels', 'method', 'seed', 'test_accuracy', 'validation_accuracy', 'setting']
    rows = [
        (str(score.budget), score.labels, score.method, seed, accuracy, validation, setting)
        for score in scores
        for seed, (accuracy, validation, setting) in enumerate(
            zip(score.accuracies, score.validations, score.settings, strict=True)
        )
    ]
    return pd.DataFrame(rows, columns=columns).to_csv(index=False, float_format='%.6f', lineterminator='\n')


def bench_csv(scores: Sequence[ProbeScore], protocol: ProbeProtocol, about: Mapping[str, Any]) -> str:
    """torchgeo-bench's rows; what has no counterpart here stays empty."""
    # Its `linear` is a logistic regression.
    names = {'knn': f'knn{protocol.neighbours}', 'logistic': 'linear', 'linear': 'linear_sgd'}
    bands = list(about['bands'])
    same = {
        'dataset': about['dataset'],
        'metric_name': 'accuracy',
        'feature_dim': about['feature_dim'],
        'n_val': about['images']['val'],
        'n_test': about['images']['test'],
        'seed': about.get('seed', 0),
        'model': 'explora_geo.models.ViT',
        'name': about['name'],
        'normalization': 'dataset',
        'image_size': about['image_size'],
        'bands': 'rgb' if bands == ['red', 'green', 'blue'] else '+'.join(bands),
        'merge_val': False,
        'bootstrap': 1000,
    }
    rows = []
    for score in scores:
        setting, linear = score.settings[0], score.method == 'linear'
        own = {
            'method': names[score.method],
            'metric_value': score.mean,
            'ci_lower': score.interval[0],
            'ci_upper': score.interval[1],
            'best_c': setting.rpartition('C=')[2] if score.method == 'logistic' else '',
            'best_lr': setting.rpartition('lr ')[2] if linear else '',
            'best_batch_size': protocol.sweep.batch_size if linear else '',
            'n_train': score.labels,
            'partition': score.budget.partition,
        }
        rows.append({**same, **own})
    return pd.DataFrame(rows, columns=BENCH_COLUMNS).to_csv(index=False, lineterminator='\n')


def _plot(scores: Sequence[ProbeScore], title: str) -> bytes:
    """Accuracy over the number of labels, a line per method, with intervals, as PNG."""
    figure = Figure(figsize=(7, 4.2), layout='constrained')
    axis = figure.subplots()
    for method in dict.fromkeys(s.method for s in scores):
        rows = sorted((s for s in scores if s.method == method), key=lambda s: s.labels)
        means = np.array([100 * s.mean for s in rows])
        low, high = 100 * np.array([s.interval for s in rows]).T
        # A percentile interval may lie beside the mean by rounding.
        errors = np.maximum([means - low, high - means], 0)
        axis.errorbar([s.labels for s in rows], means, yerr=errors, marker='o', capsize=3, label=method)
    axis.set_xscale('log')
    axis.set(xlabel='training labels', ylabel='test accuracy, %')
    axis.set_title(title, fontsize=10, loc='left')
    axis.spines[['top', 'right']].set_visible(False)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    file = io.BytesIO()
    figure.savefig(file, dpi=120, format='png')
    return file.getvalue()
