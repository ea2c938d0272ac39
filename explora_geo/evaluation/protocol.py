"""Full evaluation protocol for frozen features, methods x label budgets x seeds, and its reports."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from explora_geo._atomic import write_text
from explora_geo.evaluation.features import FeatureTable, extract_parts
from explora_geo.evaluation.probes import Budget, Choice, bootstrap_interval, knn_hits, logistic_hits
from explora_geo.evaluation.sweep import SweepConfig, SweepRow, linear_sweep
from explora_geo.models.vit import ViT

#: Method names in options and reports.
METHODS = ('linear', 'logistic', 'knn')


@dataclass(frozen=True)
class ProbeProtocol:
    """Protocol for probes on frozen features.

    Attributes:
        budgets: Label budgets.
        seeds: Label draws for every budget but `all`.
        methods: `linear` (the paper's sweep), `logistic` (regression), `knn`.
        sweep: Sweep with all labels.
        few_iterations: Steps per epoch of the sweep with few labels.
        neighbors: k of k-NN.
        last_blocks: Number of last blocks whose class tokens `logistic` and `knn` read; with one, validation
            may choose its mean patch token instead.
    """

    budgets: tuple[Budget, ...] = (Budget(),)
    seeds: int = 5
    methods: tuple[str, ...] = METHODS
    sweep: SweepConfig = field(default_factory=SweepConfig)
    few_iterations: int = 150
    neighbors: int = 5
    last_blocks: int = 1

    def __post_init__(self) -> None:
        """Check the values."""
        unknown = [m for m in self.methods if m not in METHODS]
        if unknown or not self.methods:
            raise ValueError(f'methods must be among {", ".join(METHODS)}, got {", ".join(self.methods)}')
        for name in ('seeds', 'few_iterations', 'neighbors', 'last_blocks'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be at least 1, got {getattr(self, name)}')

    def sweep_of(self, budget: Budget) -> SweepConfig:
        """Return the sweep for a label budget: shorter with few labels."""
        least = min(self.sweep.iterations, self.few_iterations)
        return self.sweep if budget.full else replace(self.sweep, iterations=least)


class ProbeScore(NamedTuple):
    """Test accuracy of one method with one label budget; accuracies are in [0, 1]."""

    method: str
    budget: Budget
    accuracies: list[float]  # one per seed
    interval: tuple[float, float]  # 95 % bootstrap over seeds and test images
    settings: list[str]  # chosen on validation, one per seed
    validations: list[float]  # validation accuracy of the chosen setting, one per seed
    labels: int  # training labels used

    @property
    def mean(self) -> float:
        """Mean accuracy over seeds."""
        return float(np.mean(self.accuracies))

    @property
    def chosen(self) -> str:
        """Setting chosen by most seeds."""
        return max(self.settings, key=self.settings.count)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return {**self._asdict(), 'budget': str(self.budget), 'mean': self.mean}


class ProbeOutcome(NamedTuple):
    """All results of a probe."""

    protocol: ProbeProtocol
    scores: list[ProbeScore]  # one per method and budget
    sweep: list[SweepRow]  # all configurations of the paper's sweep with all labels, if it ran
    absent: dict[str, dict[str, int]]  # see `describe_absent`
    images: dict[str, int]  # number per split
    skipped: list[str]  # `<path>: <reason>` of images that could not be read


def probe(
    vit: ViT,
    datamodule: Any,
    protocol: ProbeProtocol,
    cache: Path | None = None,
    *,
    statistics: Literal['model', 'data'] | None = None,
    progress: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> ProbeOutcome:
    """Evaluate the frozen features of a backbone on a data module.

    Args:
        vit: Backbone, on the device to use.
        datamodule: Data module of ours or of TorchGeo.
        protocol: Probe protocol.
        cache: Folder of cached features; None disables the cache.
        statistics: Source of the mean and standard deviation for normalization; see `match_data`.
        progress: Receives a description of each next step.
        **options: `turns`, `batch_size` and `num_workers` of `cached_features`.

    Raises:
        ValueError: If there is no test split, or the data do not fit the backbone.
    """
    tables = extract_parts(vit, datamodule, cache, progress, statistics, **options)
    classes = tuple(getattr(datamodule.train_dataset, 'classes', ()))
    return run_probes(tables, protocol, classes, progress)


def describe_plan(datamodule: Any, protocol: ProbeProtocol) -> str:
    """Describe the amount of work in one sentence."""
    for stage in ('fit', 'test'):
        datamodule.setup(stage)
    found = {part: getattr(datamodule, f'{part}_dataset', None) for part in ('train', 'val', 'test')}
    images = ', '.join(f'{part} {len(data):,}' for part, data in found.items() if data is not None)
    fits = sum(1 if b.full else protocol.seeds for b in protocol.budgets)
    return (
        f'images: {images}; each passes through the backbone once, then {", ".join(protocol.methods)} on '
        f'{fits} label draws; nothing was written'
    )


def run_probes(
    tables: Mapping[str, FeatureTable],
    protocol: ProbeProtocol,
    classes: Sequence[str] = (),
    progress: Callable[[str], None] = lambda text: None,
) -> ProbeOutcome:
    """Run the probes of a protocol on extracted features.

    Labels are drawn from the table `train`; every setting is chosen on `val` and scored on `test`. Images of
    classes without training images count as wrong in both; `classes` names them.

    Raises:
        ValueError: If the training images have fewer than two classes.
    """
    train, val, test = (tables[part] for part in ('train', 'val', 'test'))
    present = set(train.label.tolist())
    if len(present) < 2:
        raise ValueError(
            f'a probe needs at least two classes, but the training images have {len(present)}: add images '
            'of other classes'
        )
    absent: dict[str, dict[str, int]] = {}
    for part, table in {'validation': val, 'test': test}.items():
        for label, count in sorted(Counter(table.label.tolist()).items()):
            if label not in present:
                name = classes[label] if label < len(classes) else str(label)
                absent.setdefault(name, {})[part] = count
    sweep: list[SweepRow] = []

    def measure(method: str, drawn: FeatureTable, budget: Budget) -> Choice:
        if method == 'linear':
            rows, choice = linear_sweep(drawn, val, test, protocol.sweep_of(budget))
            sweep.extend(rows if budget.full else ())
            return choice
        a, b, c = ((t.arrays(protocol.last_blocks), t.label.numpy()) for t in (drawn, val, test))
        return logistic_hits(a, b, c) if method == 'logistic' else knn_hits(a, b, c, protocol.neighbors)

    scores = []
    for budget in protocol.budgets:
        for method in protocol.methods:
            choices = []
            for seed in range(1 if budget.full else protocol.seeds):
                progress(f'{method}, {budget} labels, seed {seed}')
                drawn = train.take(budget.draw(train.label, seed))
                choices.append(measure(method, drawn, budget))
            hits, validations, settings = (list(column) for column in zip(*choices, strict=True))
            accuracies, interval = [float(np.mean(h)) for h in hits], bootstrap_interval(hits)
            labels = len(drawn.label)
            scores.append(ProbeScore(method, budget, accuracies, interval, settings, validations, labels))
    images = {part: len(table.label) for part, table in tables.items()}
    skipped = [text for table in tables.values() for text in table.skipped]
    return ProbeOutcome(protocol, scores, sweep, absent, images, skipped)


def describe_absent(absent: Mapping[str, Mapping[str, int]]) -> str:
    """Describe in a sentence the validation and test images of classes without training images."""
    named = (
        f'{name} ({" and ".join(f"{count} {part}" for part, count in counts.items())})'
        for name, counts in absent.items()
    )
    sentence = f'Classes without training images, whose images count as wrong: {", ".join(named)}.'
    return sentence if absent else ''


def describe_source(
    vit: ViT, dataset: str, weights: str, adapter: Path | None = None, turns: int = 1, name: str = ''
) -> dict[str, Any]:
    """Describe a backbone for `write_reports`; the default name is made of backbone and weights."""
    return {
        'name': name or (f'{vit.name} + {adapter.name}' if adapter else f'{vit.name} {weights}'),
        'dataset': dataset,
        'backbone': vit.name,
        'weights': weights,
        'adapter': str(adapter) if adapter else None,
        'bands': list(vit.patch_embed.bands),
        'image_size': vit.patch_embed.img_size,
        'feature_dim': vit.embed_dim,
        'turns': turns,
    }


def write_reports(folder: Path, outcome: ProbeOutcome, about: Mapping[str, Any]) -> list[Path]:
    """Write results, protocol and model (`about`, from `describe_source`) as `probe.json` and `probe.md`."""
    protocol = outcome.protocol
    sweep, few = protocol.sweep, protocol.sweep_of(Budget(per_class=1))
    content = {
        **about,
        'images': outcome.images,
        'skipped': outcome.skipped,
        'protocol': {
            'learning_rates': list(sweep.learning_rates),
            'blocks': list(sweep.blocks),
            'steps': sweep.epochs * sweep.iterations,
            'steps_few_labels': few.epochs * few.iterations,
            'batch_size': sweep.batch_size,
            'neighbors': protocol.neighbors,
            'seeds': protocol.seeds,
        },
        'scores': [s.to_dict() for s in outcome.scores],
        'sweep': [{'setting': r.setting, **r._asdict()} for r in outcome.sweep],
        'absent_classes': outcome.absent,
    }
    title = f'# Frozen features of {about["name"]} on {about["dataset"]}'
    texts = {'probe.json': json.dumps(content, indent=1), 'probe.md': f'{title}\n\n{_markdown(outcome)}'}
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def _markdown(outcome: ProbeOutcome) -> str:
    """Format scores, classes without training images, and skipped images as Markdown."""
    lines = [
        f'Images: {", ".join(f"{count} {part}" for part, count in outcome.images.items())}. Settings are '
        'chosen on validation and scored on test; intervals are 95 % percentile bootstraps over label draws '
        'and test images.',
        '',
        '| labels | method | test accuracy, % | interval | chosen |',
        '|---|---|---|---|---|',
    ]
    for score in outcome.scores:
        mean, low, high = (f'{100 * share:.2f}' for share in (score.mean, *score.interval))
        lines.append(f'| {score.labels} | {score.method} | {mean} | {low} to {high} | {score.chosen} |')
    skipped = f'Skipped: {"; ".join(outcome.skipped)}' if outcome.skipped else ''
    for sentence in filter(None, (describe_absent(outcome.absent), skipped)):
        lines += ['', sentence]
    return '\n'.join([*lines, ''])
