"""Label-free scores of frozen features, before and after an adaptation.

All functions take image features, shape (N, D): one row per tile, any unit; two sets hold the same tiles in
the same order. No score proves a gain; `SCORES` states which direction is better. Features that are not a
finite table, or not of the same tiles, raise ValueError.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics.pairwise import cosine_similarity, paired_cosine_distances
from torch import Tensor
from torch.nn import functional as F

from explora_geo.evaluation.features import mean_patches
from explora_geo.models.vit import ViT

Array = NDArray[np.float64]


class ScoreInfo(NamedTuple):
    """Explanation of a score for readers."""

    title: str
    meaning: str  # and the better direction, if there is one


#: Scores of `compare_backbones` by key.
SCORES = {
    'effective_rank': ScoreInfo(
        'Effective rank', 'Number of directions the features use about evenly (RankMe). Higher is better.'
    ),
    'centered_rank': ScoreInfo(
        'Effective rank, centered', 'The same after subtracting the mean of all tiles. Higher is better.'
    ),
    'neighbor_agreement': ScoreInfo(
        'Neighbors of two crops',
        'Share of nearest neighbors that two crops of a tile have in common. Higher is better.',
    ),
    'view_retrieval': ScoreInfo(
        'Crop finds its tile',
        'Share of crops whose nearest other crop comes from the same tile. Higher is better.',
    ),
    'cosine_drift': ScoreInfo('Drift, cosine', 'One minus the mean cosine to the source features.'),
    'cka_drift': ScoreInfo('Drift, CKA', 'One minus linear CKA; 0 if only rotation and scale changed.'),
    'neighbors_kept': ScoreInfo(
        'Neighbors kept', 'Share of nearest neighbors that source and adapted features have in common.'
    ),
}

#: The score used for decisions.
DEFAULT_SCORE = 'view_retrieval'
#: Its reliability, according to `benchmarks/results/study/label_free.json`.
WORTH = (
    'In 95 short adaptations, good and bad, the change in "crop finds its tile" tracked the k-NN gain with '
    'rank correlations of 0.78 on EuroSAT, 0.89 on AID and 0.91 on natural images; it fell in 11 of the 23 '
    'that did harm and in 5 of the 72 others. It is only a hint: proving a gain takes labels.'
)


def effective_rank(features: ArrayLike, centered: bool = False) -> float:
    """Compute the effective rank of features, the number of directions they use, from 1 to min(N, D).

    RankMe (Garrido et al. 2023, section 3): the exponential of the entropy of the normalized singular values.
    Without centering, features that are identical up to noise have rank 1; `centered` first subtracts the
    mean of all tiles, because a dominant mean hides everything else.
    """
    x = _table(features, 1)
    values = np.linalg.svd(x - x.mean(0) if centered else x, compute_uv=False)
    shares = values / max(values.sum(), 1e-12)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def nearest(features: ArrayLike, neighbors: int = 10) -> NDArray[np.int64]:
    """Find each tile's nearest other tiles by cosine of centered features: row indices, shape (N, k)."""
    x = _table(features)
    if not 0 < neighbors < len(x):
        raise ValueError(f'neighbors must be from 1 to {len(x) - 1} for {len(x)} tiles, got {neighbors}')
    similarity = cosine_similarity(x - x.mean(0))
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1, kind='stable')[:, :neighbors]


def neighbor_agreement(first: ArrayLike, second: ArrayLike, neighbors: int = 10) -> float:
    """Compute the mean share in [0, 1] of nearest tiles that two feature sets, of any widths, share.

    Huh et al. 2024 (The Platonic Representation Hypothesis, section 2) compare networks with it. Between
    two crops of each tile it measures whether neighborhoods depend on content; between source and adapted
    features, how many neighborhoods survive. Unrelated features give k / (N - 1), constant features 0, as
    they have no neighbors.
    """
    a, b = _pair(first, second)
    if _constant(a) or _constant(b):
        return 0.0
    rows = zip(nearest(a, neighbors), nearest(b, neighbors), strict=True)
    return float(np.mean([np.intersect1d(p, q).size for p, q in rows]) / neighbors)


def view_retrieval(first: ArrayLike, second: ArrayLike) -> float:
    """Compute the share in [0, 1] of tiles whose nearest second view is their own; 1 / N by chance."""
    a, b = _pair(first, second, same_width=True)
    similarity = cosine_similarity(a - a.mean(0), b - b.mean(0))
    return float((similarity.argmax(1) == np.arange(len(a))).mean())


def cosine_drift(source: ArrayLike, adapted: ArrayLike) -> float:
    """Compute one minus the mean cosine to the source features, in [0, 2]; 0 for the same directions."""
    a, b = _pair(source, adapted, same_width=True)
    return float(paired_cosine_distances(a, b).mean())


def cka_drift(source: ArrayLike, adapted: ArrayLike) -> float:
    """Compute one minus linear centered kernel alignment (Kornblith et al. 2019, section 3), in [0, 1].

    It is 0 if features are equal up to rotation, scale and shift, 1 if either is constant; the widths may
    differ.
    """
    first, second = _pair(source, adapted)
    if _constant(first) or _constant(second):
        return 1.0
    a, b = (x - x.mean(0) for x in (first, second))
    scale = np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return float(np.clip(1 - np.square(np.linalg.norm(a.T @ b)) / scale, 0, 1))


def crop_views(
    images: Tensor, seed: int = 0, area: tuple[float, float] = (0.4, 0.8)
) -> tuple[Tensor, Tensor]:
    """Make two views of each tile, cropped, turned and mirrored independently, each (N, C, H, W).

    A view covers a share of the tile drawn from the range `area`, in (0, 1]; a seed reproduces the views.
    """
    generator = np.random.default_rng(seed)
    height, width = images.shape[-2:]

    def view(image: Tensor) -> Tensor:
        scale = np.sqrt(generator.uniform(*area))
        h, w = max(round(height * scale), 1), max(round(width * scale), 1)
        top, left = generator.integers(height - h + 1), generator.integers(width - w + 1)
        crop = image[None, :, top : top + h, left : left + w]
        crop = F.interpolate(crop, (height, width), mode='bicubic', align_corners=False)[0]
        crop = crop.flip(-1) if generator.random() < 0.5 else crop
        quarter = int(generator.integers(4)) if height == width else 2 * int(generator.integers(2))
        return torch.rot90(crop, quarter, (-2, -1))

    first, second = (torch.stack([view(image) for image in images]) for _ in range(2))
    return first, second


def default_score(vit: ViT, images: Tensor) -> float:
    """Compute `DEFAULT_SCORE`, in [0, 1], of a backbone on normalized tiles, shape (N, C, H, W)."""
    return view_retrieval(*(mean_patches(vit, view) for view in crop_views(images)))


def compare_backbones(
    source: ViT, adapted: ViT, images: Tensor, *, neighbors: int = 10, batch_size: int = 64
) -> dict[str, dict[str, float]]:
    """Compute all label-free scores of two backbones from mean patch tokens of a sample of the archive.

    Args:
        source: Backbone before adaptation.
        adapted: Backbone after it, on the same device.
        images: Normalized tiles, shape (N, C, H, W); a few hundred are enough.
        neighbors: Neighbors k; fewer if there are not enough tiles.
        batch_size: Tiles per forward pass.

    Returns:
        Scores by the keys of `SCORES` for `source`, whose drift is 0, and `adapted`.
    """
    if len(images) < 3:
        raise ValueError(f'label-free scores need at least 3 tiles, got {len(images)}')
    neighbors = min(neighbors, len(images) - 2)
    stacks = (images, *crop_views(images))
    features = [[mean_patches(vit, stack, batch_size) for stack in stacks] for vit in (source, adapted)]
    start, found = features[0][0], {}
    for name, (whole, first, second) in zip(('source', 'adapted'), features, strict=True):
        found[name] = {
            'effective_rank': effective_rank(whole),
            'centered_rank': effective_rank(whole, centered=True),
            'neighbor_agreement': neighbor_agreement(first, second, neighbors),
            'view_retrieval': view_retrieval(first, second),
            'cosine_drift': cosine_drift(start, whole),
            'cka_drift': cka_drift(start, whole),
            'neighbors_kept': neighbor_agreement(start, whole, neighbors),
        }
    return found


def _table(features: ArrayLike, least: int = 2) -> Array:
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or len(x) < least or not x.shape[1]:
        raise ValueError(f'features must have shape (N, D) with at least {least} tiles, got {x.shape}')
    if not np.isfinite(x).all():
        raise ValueError('features contain non-finite values: the backbone diverged')
    return x


def _pair(first: ArrayLike, second: ArrayLike, same_width: bool = False) -> tuple[Array, Array]:
    a, b = _table(first), _table(second)
    if len(a) != len(b) or (same_width and a.shape != b.shape):
        raise ValueError(f'features must come from the same tiles, got shapes {a.shape} and {b.shape}')
    return a, b


def _constant(x: Array) -> bool:
    """Return whether tiles differ by no more than the rounding error of a forward pass."""
    return bool(np.linalg.norm(x - x.mean(0)) <= 1e-5 * np.linalg.norm(x))
