"""Linear probe and k-NN on frozen features."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

Array = NDArray[Any]

#: Inverse regularisation strengths of the linear probe's sweep: 0.1 suits tens of labels, 1 to 10 thousands.
STRENGTHS = (0.01, 0.1, 1.0, 10.0)

# Numbers of a validation set from which on more than one thread fits faster.
_LARGE = 1_000_000


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


class Choice(NamedTuple):
    """The setting that was best on validation.

    Attributes:
        hits: Whether each test image is right, shape (M,).
        validation: Validation accuracy.
        setting: Text that names the setting.
    """

    hits: NDArray[np.bool_]
    validation: float
    setting: str


def _choose(
    candidates: Iterable[tuple[str, Any, str]],
    val: dict[str, Array],
    val_labels: Array,
    test: dict[str, Array],
    test_labels: Array,
) -> Choice:
    """Of fitted models `(setting, model, feature set)`, the first that is best on validation."""
    best: tuple[float, str, Any, str] = (-1.0, '', None, '')
    # Threads of a small fit wait for one another: on a busy machine one is many times faster than two.
    small = max(values.size for values in val.values()) < _LARGE
    with threadpool_limits(1 if small else None, user_api='blas'):
        for setting, model, name in candidates:
            score = float(model.score(val[name], val_labels))
            if score > best[0]:
                best = score, setting, model, name
        score, setting, model, name = best
        return Choice(model.predict(test[name]) == test_labels, score, setting)


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
    hits, validation, setting = logistic_hits(
        train, train_labels, val, val_labels, test, test_labels, strengths
    )
    return ProbeResult(float(hits.mean()), validation, setting)


def logistic_hits(
    train: dict[str, Array],
    train_labels: Array,
    val: dict[str, Array],
    val_labels: Array,
    test: dict[str, Array],
    test_labels: Array,
    strengths: Sequence[float] = STRENGTHS,
) -> Choice:
    """As `linear_probe`, but which test images are right."""
    candidates = (
        (f'{name}, C={strength:g}', _logistic(strength).fit(features, train_labels), name)
        for name, features in train.items()
        for strength in strengths
    )
    return _choose(candidates, val, val_labels, test, test_labels)


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
    return float(np.mean(_knn(k, train, train_labels).predict(test) == test_labels))


def knn_hits(
    train: dict[str, Array],
    train_labels: Array,
    val: dict[str, Array],
    val_labels: Array,
    test: dict[str, Array],
    test_labels: Array,
    k: int = 5,
) -> Choice:
    """Which test images k nearest neighbours classify correctly; the feature set is chosen on validation."""
    candidates = ((f'{name}, k={k}', _knn(k, x, train_labels), name) for name, x in train.items())
    return _choose(candidates, val, val_labels, test, test_labels)


def cross_validated_accuracy(
    features: Array, labels: Array, method: str = 'knn', folds: int = 5
) -> float | None:
    """Mean accuracy of a probe over folds of one labeled set.

    Args:
        features: Features, shape (N, F).
        labels: Classes, shape (N,).
        method: `knn`, of at most 20 neighbours, or `linear`, a logistic regression.
        folds: Folds; fewer where the rarest class has fewer images.

    Returns:
        Accuracy in [0, 1]; None where there are fewer than two classes or images of a class.
    """
    classes, counts = np.unique(labels, return_counts=True)
    folds = min(folds, int(counts.min()))
    if folds < 2 or len(classes) < 2:
        return None
    neighbours = max(1, min(20, len(labels) * (folds - 1) // folds))
    scores = []
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=0).split(features, labels):
        fit = _knn(neighbours, features[train], labels[train]) if method == 'knn' else None
        model = fit or _logistic(0.1).fit(features[train], labels[train])
        scores.append(float(model.score(features[test], labels[test])))
    return float(np.mean(scores))


def _knn(k: int, train: Array, labels: Array) -> KNeighborsClassifier:
    model = KNeighborsClassifier(min(k, len(train)), metric='cosine', weights='distance')
    return model.fit(train, labels)
