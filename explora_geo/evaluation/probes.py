"""Linear probe and k-NN on frozen features."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Array = NDArray[Any]

#: Inverse regularisation strengths of the linear probe's sweep.
STRENGTHS = (0.001, 0.01, 0.1)


class ProbeResult(NamedTuple):
    """Outcome of a sweep.

    Attributes:
        accuracy: Test accuracy of the setting that was best on validation, in [0, 1].
        validation: Its validation accuracy.
        setting: Feature set and regularisation of it.
    """

    accuracy: float
    validation: float
    setting: str


def _logistic(strength: float) -> Any:
    # The coarse tolerance is far below what moves an accuracy, and several times faster.
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500, tol=1e-3))


def linear_probe(
    train: dict[str, Array],
    train_labels: Array,
    val: dict[str, Array],
    val_labels: Array,
    test: dict[str, Array],
    test_labels: Array,
    strengths: Sequence[float] = STRENGTHS,
) -> ProbeResult:
    """Logistic regression, swept over feature sets and regularisation, chosen on validation.

    Args:
        train: Feature sets of the training part, each of shape (N, F); see `feature_sets`.
        train_labels: Their labels, shape (N,).
        val: The same of the validation part, only used to choose.
        val_labels: Their labels.
        test: The same of the test part, only used to report.
        test_labels: Their labels.
        strengths: Inverse regularisation strengths.

    Returns:
        The chosen setting and its accuracies.
    """
    best = ProbeResult(0.0, -1.0, '')
    for name, features in train.items():
        for strength in strengths:
            model = _logistic(strength).fit(features, train_labels)
            score = float(model.score(val[name], val_labels))
            if score > best.validation:
                best = ProbeResult(
                    float(model.score(test[name], test_labels)), score, f'{name}, C={strength:g}'
                )
    return best


def knn_accuracy(train: Array, train_labels: Array, test: Array, test_labels: Array, k: int = 10) -> float:
    """Accuracy of k nearest neighbours by cosine distance, weighted by nearness.

    Args:
        train: Features with known labels, shape (N, F).
        train_labels: Labels, shape (N,).
        test: Features to classify, shape (M, F).
        test_labels: Their labels, shape (M,).
        k: Neighbours; at most N.

    Returns:
        Accuracy in [0, 1].
    """
    model = KNeighborsClassifier(min(k, len(train)), metric='cosine', weights='distance')
    return float(np.mean(model.fit(train, train_labels).predict(test) == test_labels))
