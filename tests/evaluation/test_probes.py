"""Draws of labels, k-NN and logistic regression, and intervals."""

import numpy as np
import pytest
import torch

from explora_geo.evaluation import bootstrap_interval, knn_accuracy
from explora_geo.evaluation.probes import Budget, hold_out, logistic_hits

LABELS = torch.tensor([0] * 100 + [1] * 50 + [2] * 3)


def test_knn_is_a_vote_weighted_by_nearness_of_direction() -> None:
    generator = np.random.default_rng(0)
    train, test = generator.normal(size=(60, 6)), generator.normal(size=(40, 6))
    labels, truth = generator.integers(0, 3, 60), generator.integers(0, 3, 40)
    hits = []
    for x, y in zip(test, truth, strict=True):
        distance = 1 - train @ x / np.linalg.norm(train, axis=1) / np.linalg.norm(x)
        nearest = np.argsort(distance)[:7]
        votes = np.bincount(labels[nearest], 1 / distance[nearest], minlength=3)
        hits.append(votes.argmax() == y)
    assert knn_accuracy(train, labels, test, truth, k=7) == pytest.approx(np.mean(hits))


def test_knn_does_not_see_lengths_and_takes_no_more_neighbours_than_there_are() -> None:
    train = np.array([[1.0, 0.0], [0.0, 1.0]])
    test = np.array([[9.0, 1.0], [0.1, 0.9]])
    assert knn_accuracy(train, np.array([0, 1]), 100 * test, np.array([0, 1]), k=10) == 1


def sets(seed: int, count: int, noise: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, count)
    good = generator.normal(size=(count, 4)) + noise * np.eye(2, 4)[labels]
    return {'bad': generator.normal(size=(count, 4)), 'good': good}, labels


def test_the_probe_is_chosen_on_validation_and_reported_on_test() -> None:
    train, val, test = sets(0, 100, 6), sets(1, 80, 6), sets(2, 80, 6)
    result = logistic_hits(train, val, test)
    assert result.setting.startswith('good, C=')
    assert result.hits.mean() > 0.95 and result.validation > 0.95
    # Test labels turned round must not change the choice.
    turned = logistic_hits(train, val, (test[0], 1 - test[1]))
    assert (turned.setting, turned.validation) == (result.setting, result.validation)
    assert (turned.hits != result.hits).all()


def test_features_need_no_scaling_by_the_user() -> None:
    scaled = []
    for factor in (1, 1000):
        parts = [sets(seed, 80, 3) for seed in range(3)]
        rows = [({k: factor * v for k, v in features.items()}, y) for features, y in parts]
        scaled.append(logistic_hits(*rows))
    assert (scaled[0].hits == scaled[1].hits).all() and scaled[0][1:] == scaled[1][1:]


def test_small_differences_between_features_are_found_with_many_labels() -> None:
    parts = []
    for seed, count in ((0, 2000), (1, 500), (2, 2000)):
        generator = np.random.default_rng(seed)
        common, own = generator.normal(size=(count, 1)), generator.normal(size=(count, 8))
        # The class is in differences a tenth as large as what all features share, so weights must be large.
        features = common + 0.1 * own
        labels = (own[:, :4].sum(1) > own[:, 4:].sum(1)).astype(int)
        parts.append(({'cls': features}, labels))
    accuracy = logistic_hits(*parts).hits.mean()
    assert accuracy > 0.98
    assert accuracy > logistic_hits(*parts, strengths=(0.001, 0.01, 0.1)).hits.mean() + 0.01


def test_a_tenth_of_every_class_is_held_out() -> None:
    train, val = hold_out(LABELS)
    assert LABELS[val].bincount().tolist() == [10, 5, 1] and LABELS[train].bincount().tolist() == [90, 45, 2]
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(len(LABELS)))


@pytest.mark.parametrize(
    ('text', 'expected'),
    [('10%', [10, 5, 1]), ('1%', [1, 1, 1]), ('2.5%', [2, 1, 1]), ('5', [5, 5, 3]), ('all', [100, 50, 3])],
)
def test_a_budget_draws_the_same_share_or_number_of_each_class(text: str, expected: list[int]) -> None:
    budget = Budget.parse(text)
    drawn = budget.draw(LABELS, seed=0)
    assert LABELS[drawn].bincount().tolist() == expected
    assert len(drawn.unique()) == len(drawn)
    assert str(budget) == text
    assert torch.equal(drawn, budget.draw(LABELS, seed=0))
    assert budget.full or not torch.equal(drawn, budget.draw(LABELS, seed=1))


@pytest.mark.parametrize('text', ['', '0', '0%', '101%', 'some', '-5', '1.5'])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match='label budget must be all, a share'):
        Budget.parse(text)


def test_the_bootstrap_agrees_with_the_binomial_interval_for_one_seed() -> None:
    hits = np.random.default_rng(0).random((1, 400)) < 0.8
    low, high = bootstrap_interval(hits)
    half = 1.96 * (hits.mean() * (1 - hits.mean()) / 400) ** 0.5
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert low < hits.mean() < high


def test_the_bootstrap_sees_both_seeds_and_images() -> None:
    generator = np.random.default_rng(1)
    images = generator.random((4, 300)) < 0.7
    seeds = generator.random((4, 300)) < np.array([[0.5], [0.6], [0.8], [0.9]])
    widths = [np.ptp(bootstrap_interval(h)) for h in (images, seeds)]
    assert widths[1] > 1.5 * widths[0]
    assert bootstrap_interval(images) == bootstrap_interval(images)


def test_nothing_has_no_bootstrap() -> None:
    with pytest.raises(ValueError, match='at least one seed and one test image'):
        bootstrap_interval(np.zeros((0, 5), dtype=bool))
