"""k-NN and linear probe."""

import numpy as np
import pytest

from explora_geo.evaluation import knn_accuracy, linear_probe


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
    result = linear_probe(*train, *val, *test)
    assert result.setting.startswith('good, C=')
    assert result.accuracy > 0.95 and result.validation > 0.95
    # Test labels turned round must not change the choice.
    turned = linear_probe(*train, *val, test[0], 1 - test[1])
    assert (turned.setting, turned.validation) == (result.setting, result.validation)
    assert turned.accuracy == pytest.approx(1 - result.accuracy)


def test_features_need_no_scaling_by_the_user() -> None:
    scaled = []
    for factor in (1, 1000):
        parts = [sets(seed, 80, 3) for seed in range(3)]
        rows = [({k: factor * v for k, v in features.items()}, y) for features, y in parts]
        scaled.append(linear_probe(*rows[0], *rows[1], *rows[2]))
    assert scaled[0] == scaled[1]


def test_small_differences_between_features_are_found_with_many_labels() -> None:
    parts = []
    for seed, count in ((0, 2000), (1, 500), (2, 2000)):
        generator = np.random.default_rng(seed)
        common, own = generator.normal(size=(count, 1)), generator.normal(size=(count, 8))
        # The class is in differences a tenth as large as what all features share, so weights must be large.
        features = common + 0.1 * own
        labels = (own[:, :4].sum(1) > own[:, 4:].sum(1)).astype(int)
        parts += [{'cls': features}, labels]
    result = linear_probe(*parts)
    assert result.accuracy > 0.98
    assert result.accuracy > linear_probe(*parts, strengths=(0.001, 0.01, 0.1)).accuracy + 0.01
