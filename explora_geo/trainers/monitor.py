"""How good features are: accuracy by cross-validation with labels, effective rank without."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch.distributed as dist
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.utils.data import DistributedSampler

from explora_geo.evaluation.label_free import effective_rank


class FeatureMonitor:
    """Collects features and labels of validation batches and scores them.

    Attributes:
        starting: Score of the starting weights, if known.
        latest: Score of the last validation, if labelled.
    """

    def __init__(self, kind: str, folds: int = 5) -> None:
        """Initialize a FeatureMonitor.

        Args:
            kind: `knn`, `linear` or `none`.
            folds: Folds of the cross-validation.
        """
        self.kind, self.folds = kind, folds
        self.starting: float | None = None
        self.latest: float | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the collected features."""
        self._features: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []

    def add(self, features: Tensor, batch: Mapping[str, Any]) -> None:
        """Collect a batch.

        Args:
            features: Image features, shape (B, D).
            batch: Sample dict; its labels count if there is one class per image.
        """
        if self.kind == 'none':
            return
        self._features.append(features.float().cpu().numpy())
        label = batch.get('label')
        if not isinstance(label, Tensor) or label.ndim != 1 or label.is_floating_point():
            return
        if (label >= 0).all():  # below 0 means without a label
            self._labels.append(label.cpu().numpy())

    def gather(self, sampler: object) -> None:
        """Bring together what all processes collected, in the order of the data.

        Args:
            sampler: How images are shared among processes; without a `DistributedSampler` each has all.
        """
        if not (dist.is_initialized() and isinstance(sampler, DistributedSampler)):
            return
        labels = np.concatenate(self._labels) if len(self._labels) == len(self._features) != 0 else None
        own = np.concatenate(self._features) if self._features else None, labels
        shares: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(shares, own)
        data: Any = sampler.dataset
        total = len(data)  # samplers repeat images to give all as many
        features = [share[0] for share in shares if share[0] is not None]
        known = [share[1] for share in shares if share[1] is not None]
        self._features = [_in_turn(features)[:total]] if features else []
        self._labels = [_in_turn(known)[:total]] if len(known) == len(features) != 0 else []

    def score(self) -> float | None:
        """Mean accuracy over the folds in [0, 1]; None without enough labels."""
        if not self._labels or len(self._labels) < len(self._features):
            return None
        features, labels = np.concatenate(self._features), np.concatenate(self._labels)
        folds = min(self.folds, int(np.bincount(labels)[np.unique(labels)].min()))
        if folds < 2 or len(np.unique(labels)) < 2:
            return None
        neighbours = max(1, min(20, len(labels) * (folds - 1) // folds))
        model: Any = (
            KNeighborsClassifier(neighbours, metric='cosine', weights='distance')
            if self.kind == 'knn'
            else make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
        )
        cv = StratifiedKFold(folds, shuffle=True, random_state=0)
        return float(cross_val_score(model, features, labels, cv=cv).mean())

    def rank(self) -> float | None:
        """Effective rank of the features; None without any."""
        return effective_rank(np.concatenate(self._features)) if self._features else None


def _in_turn(shares: list[np.ndarray]) -> np.ndarray:
    """Rows of processes that took every n-th image, in the order of the images where all read as many."""
    if len({len(share) for share in shares}) > 1:  # some were skipped
        return np.concatenate(shares)
    rows: np.ndarray = np.stack(shares, axis=1)
    return rows.reshape(-1, *rows.shape[2:])
