"""What is watched while a run goes on: features and speed."""

import time
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from explora_geo.trainers.guard import FeatureMonitor, StepClock


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


class SlowDataset(Dataset[dict[str, torch.Tensor]]):
    """Images that take their time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        time.sleep(self.seconds)
        return {'image': torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(index))}


@pytest.mark.parametrize(('seconds', 'low', 'high'), [(0.3, 0.5, 1.0), (0.0, 0.0, 0.5)])
def test_the_log_says_what_share_of_the_time_was_spent_waiting(
    build_task: Any, build_trainer: Any, seconds: float, low: float, high: float
) -> None:
    trainer = build_trainer()
    trainer.fit(build_task(), DataLoader(SlowDataset(seconds), batch_size=2))
    assert low < float(trainer.callback_metrics['data_wait']) < high


def test_the_clock_leaves_out_what_stands_between_steps() -> None:
    clock = StepClock()
    assert clock.lap(4) == {}
    clock.wait()
    time.sleep(0.02)
    clock.go_on()
    time.sleep(0.02)
    found = clock.lap(4)
    assert 0 < found['images_per_s'] < 100 and 0.2 < found['data_wait'] < 0.8
    clock.wait()
    clock.pause()
    clock.go_on()
    assert clock.lap(4) == {}
