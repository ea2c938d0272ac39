"""What a backbone is worth with labels: probes and few-label tuning over label seeds."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from explora_geo.demo.tiles import Tiles, draw_labels
from explora_geo.evaluation import (
    extract_features,
    feature_sets,
    knn_accuracy,
    linear_probe,
    mean_interval,
    tune_few_labels,
)
from explora_geo.models.vit import ViT

#: The feature set of k-NN, MAE's pooling.
_KNN_SET = 'avg, last block'


@dataclass
class Protocol:
    """Label budgets and seeds.

    Attributes:
        probe_per_class: Labels per class of the linear probe and k-NN over seeds.
        probe_seeds: Draws of labels.
        tune_per_class: Labels per class of LoRA-r8 tuning.
        tune_seeds: Draws of labels; 0 leaves tuning out.
        tune_epochs: Passes over these labels.
    """

    probe_per_class: int = 25
    probe_seeds: int = 5
    tune_per_class: int = 5
    tune_seeds: int = 3
    tune_epochs: int = 12


@dataclass
class Score:
    """Accuracies of one backbone, a value per seed."""

    linear: list[float] = field(default_factory=list)
    knn: list[float] = field(default_factory=list)
    tuned: list[float] = field(default_factory=list)
    linear_all: float = 0.0
    linear_all_setting: str = ''

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON-ready values."""
        return asdict(self)


def measure(
    vit: ViT,
    train: Tiles,
    val: Tiles,
    test: Tiles,
    protocol: Protocol,
    progress: Callable[[str], None] = lambda text: None,
) -> Score:
    """Measure one plain backbone.

    Args:
        vit: Backbone without LoRA.
        train: Normalised tiles with labels to draw from.
        val: Tiles that choose the probe's setting.
        test: Held-out tiles.
        protocol: Budgets and seeds; the same seeds draw the same labels for every backbone.
        progress: Told what is done next.

    Returns:
        Accuracies.
    """
    progress('features')
    sets, labels = {}, {}
    for name, tiles in (('train', train), ('val', val), ('test', test)):
        found, labels[name] = extract_features(vit, tiles.batches())
        sets[name] = feature_sets(found)
    score = Score()
    progress('linear probe, all labels')
    result = linear_probe(
        sets['train'], labels['train'], sets['val'], labels['val'], sets['test'], labels['test']
    )
    score.linear_all, score.linear_all_setting = result.accuracy, result.setting
    for seed in range(protocol.probe_seeds):
        progress(f'linear probe and k-NN, label seed {seed}')
        index = draw_labels(train.label, protocol.probe_per_class, seed).numpy()
        drawn = {k: v[index] for k, v in sets['train'].items()}
        y = labels['train'][index]
        result = linear_probe(drawn, y, sets['val'], labels['val'], sets['test'], labels['test'])
        score.linear.append(result.accuracy)
        score.knn.append(knn_accuracy(drawn[_KNN_SET], y, sets['test'][_KNN_SET], labels['test'], k=5))
    for seed in range(protocol.tune_seeds):
        progress(f'LoRA-r8 tuning, label seed {seed}')
        few = train.take(draw_labels(train.label, protocol.tune_per_class, seed))
        accuracy = tune_few_labels(
            vit, few.image, few.label, test.image, test.label, seed=seed, epochs=protocol.tune_epochs
        )
        score.tuned.append(accuracy)
    return score


def compare(before: Score, after: Score, protocol: Protocol) -> list[dict[str, Any]]:
    """Rows of the report's table.

    Args:
        before: Scores of the source.
        after: Scores of the adapted backbone, with the same seeds.
        protocol: How they were measured.

    Returns:
        Per measurement: name, mean and half width of the 95 % interval before, after and of the paired
        gain (same labels, same seeds), in [0, 1].
    """
    names = {
        'linear': f'linear probe, {protocol.probe_per_class} labels a class',
        'knn': f'k-NN, {protocol.probe_per_class} labels a class',
        'tuned': f'LoRA-r8 tuning, {protocol.tune_per_class} labels a class',
    }
    rows = []
    for key, name in names.items():
        old, new = getattr(before, key), getattr(after, key)
        if len(old) < 2:
            continue
        gains = [b - a for a, b in zip(old, new, strict=True)]
        rows.append(
            {
                'measurement': name,
                'seeds': len(old),
                'before': mean_interval(old)._asdict(),
                'after': mean_interval(new)._asdict(),
                'gain': mean_interval(gains)._asdict(),
            }
        )
    return rows
