"""Methods, budgets and seeds together."""

from collections.abc import Callable

import pytest

from explora_geo.evaluation import FeatureTable, ProbeProtocol, SweepConfig, run_probes
from explora_geo.evaluation.budgets import Budget

Table = Callable[..., FeatureTable]
SHORT = SweepConfig(epochs=1, iterations=30)


def protocol(**kwargs: object) -> ProbeProtocol:
    budgets = (Budget.parse('2'), Budget.parse('all'))
    return ProbeProtocol(**{'budgets': budgets, 'seeds': 3, 'sweep': SHORT, 'few_iterations': 20, **kwargs})  # type: ignore[arg-type]


def test_every_method_is_scored_with_every_budget_over_seeds(table: Table) -> None:
    outcome = run_probes(table(60, 0, 6), table(30, 1, 6), table(90, 2, 6), protocol())
    assert [(s.method, str(s.budget), s.labels, len(s.accuracies)) for s in outcome.scores] == [
        ('linear', '2', 6, 3),
        ('logistic', '2', 6, 3),
        ('knn', '2', 6, 3),
        ('linear', 'all', 60, 1),
        ('logistic', 'all', 60, 1),
        ('knn', 'all', 60, 1),
    ]
    assert len(outcome.sweep) == 28
    assert all(s.mean > 0.9 for s in outcome.scores[3:])
    assert all(s.interval[0] <= s.mean <= s.interval[1] for s in outcome.scores)
    # The other token kind is noise here: validation must leave it.
    assert all('cls' in setting for s in outcome.scores for setting in s.settings)


def test_one_class_is_refused(table: Table) -> None:
    with pytest.raises(ValueError, match='at least two classes, but the training images have 1'):
        run_probes(table(9, 0, classes=1), table(9, 1), table(9, 2), protocol())


def test_a_class_without_training_images_is_named(table: Table) -> None:
    names = ('crop', 'forest', 'river')
    with pytest.raises(ValueError, match=r'1 classes of the test images have no training images \(river\)'):
        run_probes(table(9, 0, classes=2), table(9, 1, classes=2), table(9, 2), protocol(), names)


def test_unknown_methods_are_refused() -> None:
    with pytest.raises(ValueError, match='methods must be among linear, logistic, knn, got svm'):
        protocol(methods=('svm',))
    with pytest.raises(ValueError, match='seeds must be at least 1'):
        protocol(seeds=0)
