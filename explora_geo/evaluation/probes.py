"""Draws of labels, k-NN and logistic regression on frozen features, and intervals of what they hit."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

Array = NDArray[Any]
#: Feature sets by name, each of shape (N, F), and their classes, shape (N,).
Part = tuple[dict[str, Array], Array]

#: Inverse regularization strengths of logistic regression: 0.1 suits tens of labels, 1 to 10 thousands.
STRENGTHS = (0.01, 0.1, 1.0, 10.0)
# Numbers of a validation set from which on more than one thread fits faster.
_LARGE = 1_000_000
_BUDGET = re.compile(r'(?P<share>\d+(?:\.\d+)?)\s*%|(?P<count>\d+)|all')


@dataclass(frozen=True)
class Budget:
    """How many training labels are used.

    Attributes:
        share: Share of each class in (0, 1]; 1 is all labels.
        per_class: Images of each class, instead of a share.
    """

    share: float = 1.0
    per_class: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `all`, a share such as `1%`, or a number per class such as `10`; else a ValueError."""
        match = _BUDGET.fullmatch(text.strip())
        share = float(match['share']) / 100 if match and match['share'] else 1.0
        count = int(match['count']) if match and match['count'] else None
        if match is None or not 0 < share <= 1 or count == 0:
            raise ValueError(
                f'cannot read the label budget {text!r}: give all, a share such as 1%, or a number per class '
                'such as 10'
            )
        return cls(share, count)

    def __str__(self) -> str:
        """Text that `parse` reads back."""
        if self.per_class is not None:
            return str(self.per_class)
        return 'all' if self.full else f'{100 * self.share:g}%'

    @property
    def full(self) -> bool:
        """Whether every label is used, so that seeds draw the same."""
        return self.per_class is None and self.share == 1

    def draw(self, label: Tensor, seed: int) -> Tensor:
        """Ascending indices of a random draw from `label`, shape (N,): of each class at least one."""
        generator = torch.Generator().manual_seed(seed)
        drawn = []
        for c in label.unique():
            members = (label == c).nonzero().flatten()
            wanted = round(self.share * len(members)) if self.per_class is None else self.per_class
            order = torch.randperm(len(members), generator=generator)
            drawn.append(members[order[: max(wanted, 1)]])
        return torch.cat(drawn).sort().values


def hold_out(label: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending indices to train on, and of a tenth of each class, evenly spaced, to validate on.

    Of every class in `label`, shape (N,), at least one image is held out.
    """
    held = torch.zeros(len(label), dtype=torch.bool)
    for c in label.unique():
        members = (label == c).nonzero().flatten()
        held[members[5::10] if len(members) > 5 else members[-1:]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()


class Choice(NamedTuple):
    """The setting that was best on validation."""

    hits: NDArray[np.bool_]  # whether each test image is right, shape (M,)
    validation: float  # accuracy in [0, 1]
    setting: str  # names feature set and setting


def logistic_hits(train: Part, val: Part, test: Part, strengths: Sequence[float] = STRENGTHS) -> Choice:
    """Which test images a logistic regression gets right; validation chooses feature set and strength."""
    return _choose({f'C={strength:g}': _logistic(strength) for strength in strengths}, train, val, test)


def knn_hits(train: Part, val: Part, test: Part, k: int = 5) -> Choice:
    """Which test images k nearest neighbors classify correctly; validation chooses the feature set."""
    return _choose({f'k={k}': _knn(min(k, len(train[1])))}, train, val, test)


def _choose(models: Mapping[str, Any], train: Part, val: Part, test: Part) -> Choice:
    """Of models by setting, each fitted to each feature set, the first that is best on validation."""
    # Threads of a small fit wait for one another: on a busy machine one is many times faster than two.
    small = max(values.size for values in val[0].values()) < _LARGE
    best = Choice(np.zeros(0, bool), -1.0, '')
    with threadpool_limits(1 if small else None, user_api='blas'):
        for (name, features), (setting, model) in itertools.product(train[0].items(), models.items()):
            score = float(model.fit(features, train[1]).score(val[0][name], val[1]))
            if score > best.validation:
                best = Choice(model.predict(test[0][name]) == test[1], score, f'{name}, {setting}')
    return best


def knn_accuracy(train: Array, train_labels: Array, test: Array, test_labels: Array, k: int = 10) -> float:
    """Accuracy in [0, 1] of k nearest neighbors by cosine distance, weighted by nearness.

    Features `train`, (N, F), with labels, (N,), classify `test`, (M, F); of fewer than k images all vote.
    """
    return float(_knn(min(k, len(train))).fit(train, train_labels).score(test, test_labels))


def cross_validated_accuracy(
    features: Array, labels: Array, method: str = 'knn', folds: int = 5
) -> float | None:
    """Mean accuracy in [0, 1] of a probe over folds of features, shape (N, F), with labels, shape (N,).

    The method is `knn`, of at most 20 neighbors, or `linear`, a logistic regression. There are fewer folds
    where the rarest class has fewer images, and None without two of each.
    """
    classes, counts = np.unique(labels, return_counts=True)
    folds = min(folds, int(counts.min()))
    if folds < 2 or len(classes) < 2:
        return None
    model = _knn(min(20, len(labels) * (folds - 1) // folds)) if method == 'knn' else _logistic(0.1)
    parts = StratifiedKFold(folds, shuffle=True, random_state=0)
    return float(cross_val_score(model, features, labels, cv=parts).mean())


def bootstrap_interval(
    hits: NDArray[np.bool_] | Sequence[NDArray[np.bool_]], draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean accuracy, over seeds and test images.

    Both are drawn with replacement, as a few seeds alone would give too narrow an interval, from whether each
    test image is right under each seed, shape (seeds, M), with M above 0.
    """
    table = np.atleast_2d(np.asarray(hits)).astype(np.float32)
    if table.size == 0:
        raise ValueError('a bootstrap interval needs at least one seed and one test image')
    generator = np.random.default_rng(seed)
    seeds, images = table.shape
    means = [
        table[generator.integers(seeds, size=seeds)].mean(0)[generator.integers(images, size=images)].mean()
        for _ in range(draws)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _logistic(strength: float) -> Any:
    # The coarse tolerance is far below what moves an accuracy, and several times faster.
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500, tol=1e-3))


def _knn(k: int) -> KNeighborsClassifier:
    return KNeighborsClassifier(k, metric='cosine', weights='distance')
