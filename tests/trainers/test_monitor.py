"""Feature monitor."""

import pytest
import torch

from explora_geo.trainers.guard import FeatureMonitor


def clusters(per_class: int = 20, distance: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(3).repeat(per_class)
    centres = distance * torch.eye(3, 8)
    return centres[labels] + 0.3 * torch.randn(len(labels), 8), labels


@pytest.mark.parametrize('kind', ['knn', 'linear'])
def test_separable_classes_score_1_and_noise_scores_chance(kind: str) -> None:
    monitor = FeatureMonitor(kind)
    features, labels = clusters()
    for part in range(0, 60, 20):
        monitor.add(features[part : part + 20], {'label': labels[part : part + 20]})
    assert monitor.score() == 1
    monitor.reset()
    monitor.add(torch.randn(600, 8), {'label': torch.arange(600) % 3})
    assert monitor.score() == pytest.approx(1 / 3, abs=0.1)


def test_the_score_of_the_same_features_is_the_same() -> None:
    features, labels = clusters(distance=0.4)
    scores = set()
    for _ in range(3):
        monitor = FeatureMonitor('knn')
        monitor.add(features, {'label': labels})
        scores.add(monitor.score())
    assert len(scores) == 1 and 0.3 < scores.pop() < 1


@pytest.mark.parametrize(
    'labels',
    [
        None,
        torch.zeros(12, 4, 4),
        torch.zeros(12).long(),
        torch.arange(12),
        [0, 1] * 6,
        torch.rand(12),
        torch.arange(12) % 2 - 1,
    ],
    ids=['no label', 'masks', 'one class', 'one image per class', 'no tensor', 'numbers', 'partly labelled'],
)
def test_without_classes_there_is_no_score(labels: object) -> None:
    monitor = FeatureMonitor('knn')
    monitor.add(torch.randn(12, 8), {} if labels is None else {'label': labels})
    assert monitor.score() is None


def test_a_monitor_that_is_off_collects_nothing() -> None:
    monitor = FeatureMonitor('none')
    monitor.add(*[clusters()[0], {'label': clusters()[1]}])
    assert monitor.score() is None


def test_a_rare_class_lowers_the_folds_rather_than_failing() -> None:
    features, labels = clusters()
    keep = torch.cat([(labels != 2).nonzero()[:, 0], (labels == 2).nonzero()[:2, 0]])
    monitor = FeatureMonitor('knn')
    monitor.add(features[keep], {'label': labels[keep]})
    assert 0.8 < monitor.score() <= 1


def test_half_precision_features_are_scored() -> None:
    features, labels = clusters()
    monitor = FeatureMonitor('knn')
    monitor.add(features.bfloat16(), {'label': labels})
    assert monitor.score() == 1


def test_features_have_a_rank_with_and_without_labels() -> None:
    features, labels = clusters()
    for batch in ({}, {'label': labels}):
        monitor = FeatureMonitor('knn')
        assert monitor.rank() is None
        monitor.add(features, batch)
        rank = monitor.rank()
        assert rank is not None and 2 < rank < 8


def test_features_of_which_some_lack_labels_are_not_scored() -> None:
    features, labels = clusters()
    monitor = FeatureMonitor('knn')
    monitor.add(features, {'label': labels})
    monitor.add(features, {})
    assert monitor.score() is None and monitor.rank() is not None
