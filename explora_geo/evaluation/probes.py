"""Label draws, k-NN and logistic regression on frozen features, and bootstrap intervals of accuracy."""

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
# Values in a validation set above which several threads fit faster.
_LARGE = 1_000_000
_BUDGET = re.compile(r'(?P<share>\d+(?:\.\d+)?)\s*%|(?P<count>\d+)|all')


@dataclass(frozen=True)
class Budget:
    """Number of training labels to use.

    Attributes:
        share: Share of each class in (0, 1]; 1 is all labels.
        per_class: Images per class, instead of a share.
    """

    share: float = 1.0
    per_class: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `all`, a share such as `1%`, or a number per class such as `10`; else raise ValueError."""
        match = _BUDGET.fullmatch(text.strip())
        share = float(match['share']) / 100 if match and match['share'] else 1.0
        count = int(match['count']) if match and match['count'] else None
        if match is None or not 0 < share <= 1 or count == 0:
            raise ValueError(
                f'label budget must be all, a share such as 1% or a number per class such as 10, got {text!r}'
            )
        return cls(share, count)

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        if self.per_class is not None:
            return str(self.per_class)
        return 'all' if self.full else f'{100 * self.share:g}%'

    @property
    def full(self) -> bool:
        """Whether all labels are used, so that seeds make no difference."""
        return self.per_class is None and self.share == 1

    def draw(self, label: Tensor, seed: int) -> Tensor:
        """Draw at random from `label`, shape (N,), at least one per class; return ascending indices."""
        generator = torch.Generator().manual_seed(seed)
        drawn = []
        for c in label.unique():
            members = (label == c).nonzero().flatten()
            wanted = round(self.share * len(members)) if self.per_class is None else self.per_class
            order = torch.randperm(len(members), generator=generator)
            drawn.append(members[order[: max(wanted, 1)]])
        return torch.cat(drawn).sort().values


def hold_out(label: Tensor) -> tuple[Tensor, Tensor]:
    """Hold out an evenly spaced tenth of each class in `label`, shape (N,), at least one image each.

    Return ascending indices to train on, and to validate on.
    """
    held = torch.zeros(len(label), dtype=torch.bool)
    for c in label.unique():
        members = (label == c).nonzero().flatten()
        held[members[5::10] if len(members) > 5 else members[-1:]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()


class Choice(NamedTuple):
    """Best setting on validation."""

    hits: NDArray[np.bool_]  # whether each test image is classified correctly, shape (M,)
    validation: float  # accuracy in [0, 1]
    setting: str  # names of feature set and setting


def logistic_hits(train: Part, val: Part, test: Part, strengths: Sequence[float] = STRENGTHS) -> Choice:
    """Fit a logistic regression whose feature set and strength validation chooses; return its test hits."""
    return _choose({f'C={strength:g}': _logistic(strength) for strength in strengths}, train, val, test)


def knn_hits(train: Part, val: Part, test: Part, k: int = 5) -> Choice:
    """Classify by k nearest neighbors with the feature set that validation chooses; return test hits."""
    return _choose({f'k={k}': _knn(min(k, len(train[1])))}, train, val, test)


def _choose(models: Mapping[str, Any], train: Part, val: Part, test: Part) -> Choice:
    """Fit every model to every feature set, and return the first that is best on validation."""
    # Threads wait for one another in small fits: on a busy machine one is many times faster than two.
    small = max(values.size for values in val[0].values()) < _LARGE
    best = Choice(np.zeros(0, bool), -1.0, '')
    with threadpool_limits(1 if small else None, user_api='blas'):
        for (name, features), (setting, model) in itertools.product(train[0].items(), models.items()):
            score = float(model.fit(features, train[1]).score(val[0][name], val[1]))
            if score > best.validation:
                best = Choice(model.predict(test[0][name]) == test[1], score, f'{name}, {setting}')
    return best


def knn_accuracy(train: Array, train_labels: Array, test: Array, test_labels: Array, k: int = 10) -> float:
    """Compute the accuracy in [0, 1] of k-NN by cosine distance, with votes weighted by inverse distance.

    Features `train`, (N, F), with labels, (N,), classify `test`, (M, F); of fewer than k images all vote.
    """
    return float(_knn(min(k, len(train))).fit(train, train_labels).score(test, test_labels))


def cross_validated_accuracy(
    features: Array, labels: Array, method: str = 'knn', folds: int = 5
) -> float | None:
    """Cross-validate a probe on features, shape (N, F), with labels, (N,); return its accuracy in [0, 1].

    The method is `knn`, with at most 20 neighbors, or `linear`, a logistic regression. There are at most as
    many folds as images in the rarest class. Return None with fewer than two folds or classes.
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
    """Compute the 95 % percentile bootstrap interval of a mean accuracy over seeds and test images.

    Both are resampled, because a few seeds alone would give too narrow an interval. `hits` states whether
    each test image is classified correctly under each seed, shape (seeds, M), with M above 0.
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
    # The coarse tolerance is too small to change an accuracy, and several times faster.
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500, tol=1e-3))


def _knn(k: int) -> KNeighborsClassifier:
    return KNeighborsClassifier(k, metric='cosine', weights='distance')
