"""Reports of probes: JSON, CSV, Markdown, a plot, and torchgeo-bench's rows."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from explora_geo.checkpoints import atomic_path
from explora_geo.evaluation.protocol import ProbeOutcome, ProbeProtocol, ProbeScore, describe_absent

#: Columns of torchgeo-bench's result files, as far as frozen classification has them.
BENCH_COLUMNS = (
    'dataset',
    'method',
    'metric_name',
    'metric_value',
    'ci_lower',
    'ci_upper',
    'feature_dim',
    'best_c',
    'best_lr',
    'best_batch_size',
    'n_train',
    'n_val',
    'n_test',
    'seed',
    'model',
    'name',
    'normalization',
    'image_size',
    'interpolation',
    'partition',
    'bands',
    'c_range_start',
    'c_range_stop',
    'c_range_num',
    'merge_val',
    'bootstrap',
)


def write_reports(
    folder: str | Path, outcome: ProbeOutcome, protocol: ProbeProtocol, about: Mapping[str, Any]
) -> list[Path]:
    """Write every report.

    Args:
        folder: Folder to write.
        outcome: What was measured.
        protocol: How.
        about: What was measured: `name`, `dataset`, `weights`, `bands`, `image_size`, `feature_dim`,
            `images` (number by part), `skipped`.

    Returns:
        The files.
    """
    content = {
        **about,
        'protocol': {
            'learning_rates': list(protocol.sweep.learning_rates),
            'blocks': list(protocol.sweep.blocks),
            'steps': protocol.sweep.epochs * protocol.sweep.iterations,
            'steps_few_labels': protocol.sweep.epochs
            * min(protocol.sweep.iterations, protocol.few_iterations),
            'batch_size': protocol.sweep.batch_size,
            'neighbours': protocol.neighbours,
            'seeds': protocol.seeds,
        },
        'scores': [s.to_dict() for s in outcome.scores],
        'sweep': [{'setting': r.setting, **r._asdict()} for r in outcome.sweep],
        'absent_classes': outcome.absent,
    }
    texts = {
        'probe.json': json.dumps(content, indent=1),
        'probe.csv': _csv(outcome.scores),
        'probe.md': markdown(outcome, about),
        'torchgeo_bench.csv': bench_csv(outcome.scores, protocol, about),
    }
    files = []
    for name, text in texts.items():
        with atomic_path(Path(folder) / name) as temporary:
            temporary.write_text(text)
        files.append(Path(folder) / name)
    files.append(Path(folder) / 'probe.png')
    draw(files[-1], outcome.scores, f'{about["name"]} on {about["dataset"]}')
    return files


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
        chosen = max(set(score.settings), key=score.settings.count)
        lines.append(
            f'| {score.budget} | {score.labels} | {score.method} | {100 * score.mean:.2f} | '
            f'{100 * low:.2f} to {100 * high:.2f} | {len(score.accuracies)} | {chosen} |'
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
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(['budget', 'labels', 'method', 'seed', 'test_accuracy', 'validation_accuracy', 'setting'])
    for score in scores:
        rows = zip(score.accuracies, score.validations, score.settings, strict=True)
        for seed, (accuracy, validation, setting) in enumerate(rows):
            writer.writerow(
                [
                    score.budget,
                    score.labels,
                    score.method,
                    seed,
                    f'{accuracy:.6f}',
                    f'{validation:.6f}',
                    setting,
                ]
            )
    return file.getvalue()


def bench_csv(scores: Sequence[ProbeScore], protocol: ProbeProtocol, about: Mapping[str, Any]) -> str:
    """torchgeo-bench's rows; what has no counterpart here stays empty."""
    file = io.StringIO()
    writer = csv.DictWriter(file, BENCH_COLUMNS, restval='', lineterminator='\n')
    writer.writeheader()
    for score in scores:
        chosen = dict(part.split('=') for part in score.settings[0].split(', ') if '=' in part)
        linear = score.method == 'linear'
        # Its `linear` is a logistic regression.
        names = {'knn': f'knn{protocol.neighbours}', 'logistic': 'linear', 'linear': 'linear_sgd'}
        writer.writerow(
            {
                'dataset': about['dataset'],
                'method': names[score.method],
                'metric_name': 'accuracy',
                'metric_value': score.mean,
                'ci_lower': score.interval[0],
                'ci_upper': score.interval[1],
                'feature_dim': about['feature_dim'],
                'best_c': chosen.get('C', ''),
                'best_lr': score.settings[0].rpartition('lr ')[2] if linear else '',
                'best_batch_size': protocol.sweep.batch_size if linear else '',
                'n_train': score.labels,
                'n_val': about['images']['val'],
                'n_test': about['images']['test'],
                'seed': about.get('seed', 0),
                'model': 'explora_geo.models.ViT',
                'name': about['name'],
                'normalization': 'dataset',
                'image_size': about['image_size'],
                'partition': score.budget.partition,
                'bands': 'rgb'
                if list(about['bands']) == ['red', 'green', 'blue']
                else '+'.join(about['bands']),
                'merge_val': False,
                'bootstrap': 1000,
            }
        )
    return file.getvalue()


def draw(path: Path, scores: Sequence[ProbeScore], title: str) -> None:
    """Accuracy over the number of labels, a line per method, with intervals."""
    figure, axis = plt.subplots(figsize=(7, 4.2), layout='constrained')
    for method in dict.fromkeys(s.method for s in scores):
        rows = sorted((s for s in scores if s.method == method), key=lambda s: s.labels)
        means = [100 * s.mean for s in rows]
        # A percentile interval may lie beside the mean by rounding.
        errors = [
            [max(m - 100 * s.interval[0], 0) for m, s in zip(means, rows, strict=True)],
            [max(100 * s.interval[1] - m, 0) for m, s in zip(means, rows, strict=True)],
        ]
        axis.errorbar([s.labels for s in rows], means, yerr=errors, marker='o', capsize=3, label=method)
    axis.set_xscale('log')
    axis.set_xlabel('training labels')
    axis.set_ylabel('test accuracy, %')
    axis.set_title(title, fontsize=10, loc='left')
    axis.spines[['top', 'right']].set_visible(False)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format='png')
    plt.close(figure)
