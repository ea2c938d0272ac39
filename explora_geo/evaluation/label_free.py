"""Scores of frozen features that need no labels, before and after an adaptation.

All functions take image features of shape (N, D): one row per tile, any unit. None of them proves a gain;
`SCORES` says which way each one should move.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from explora_geo.models.vit import ViT

Array = NDArray[np.float64]


class ScoreInfo(NamedTuple):
    """What readers must know of a score.

    Attributes:
        title: Name in tables.
        better: Which way is up: `higher`, `lower`, or `neither` where a change alone says nothing.
        meaning: One sentence.
    """

    title: str
    better: Literal['higher', 'lower', 'neither']
    meaning: str


#: Every score of `compare_backbones`, by its key.
SCORES = {
    'effective_rank': ScoreInfo(
        'Effective rank', 'higher', 'Directions that the features use, about evenly (RankMe).'
    ),
    'centered_rank': ScoreInfo(
        'Effective rank, centered', 'higher', 'The same after the mean of all tiles is taken off.'
    ),
    'neighbor_agreement': ScoreInfo(
        'Neighbors of two crops', 'higher', 'Share of nearest tiles that two crops of a tile have in common.'
    ),
    'view_retrieval': ScoreInfo(
        'Crop finds its tile', 'higher', 'Share of crops whose nearest other crop is of the same tile.'
    ),
    'cosine_drift': ScoreInfo(
        'Drift, cosine', 'neither', 'One minus the mean cosine to the features of the source.'
    ),
    'cka_drift': ScoreInfo(
        'Drift, CKA', 'neither', 'One minus linear CKA: 0 where only rotation and scale changed.'
    ),
    'neighbors_kept': ScoreInfo(
        'Neighbors kept', 'neither', 'Share of nearest tiles that source and adapted features have in common.'
    ),
}

#: The score that stands for all of them where one must decide.
DEFAULT_SCORE = 'view_retrieval'
#: What it is worth, by `benchmarks/results/study/label_free.json`.
WORTH = (
    'In 95 short adaptations, good and bad, the change of "crop finds its tile" followed the gain of k-NN '
    'with rank correlations of 0.78 on EuroSAT, 0.89 on AID and 0.91 on natural images; it fell in 11 of the '
    '23 that did harm, and in 5 of the 72 others. It is a hint: only labels prove a gain.'
)


def effective_rank(features: ArrayLike, centered: bool = False) -> float:
    """Effective rank of features: how many directions they take, about evenly.

    RankMe (Garrido et al. 2023, section 3). Without centering, features that are all the same up to noise
    have rank 1.

    Args:
        features: Image features, shape (N, D).
        centered: Take off the mean of all tiles first; a mean that dominates hides everything else.

    Returns:
        Exponential of the entropy of the normalized singular values, from 1 to the smaller of N and D.

    Raises:
        ValueError: If the features are no finite table.
    """
    x = _table(features, 1)
    if centered:
        x = x - x.mean(0)
    values = np.linalg.svd(x, compute_uv=False)
    shares = values / max(values.sum(), 1e-12)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def nearest(features: ArrayLike, neighbors: int = 10) -> NDArray[np.int64]:
    """Nearest other tiles of each tile by cosine of centered features.

    Args:
        features: Image features, shape (N, D).
        neighbors: Neighbors k, less than N.

    Returns:
        Row indices, nearest first, shape (N, k).

    Raises:
        ValueError: If the features are no finite table or there are too few tiles.
    """
    x = _table(features)
    if not 0 < neighbors < len(x):
        raise ValueError(f'neighbors must be from 1 to {len(x) - 1} for {len(x)} tiles, got {neighbors}')
    x = _units(x - x.mean(0))
    similarity = x @ x.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1, kind='stable')[:, :neighbors]


def neighbor_agreement(first: ArrayLike, second: ArrayLike, neighbors: int = 10) -> float:
    """Mutual k-NN agreement of two sets of features of the same tiles.

    Huh et al. 2024 (The Platonic Representation Hypothesis, section 2) compare networks with it. Between
    two crops of each tile it asks whether neighborhoods hold on to content; between source and adapted
    features it says how many neighborhoods were kept.

    Args:
        first: Image features, shape (N, D).
        second: Features of the same tiles in the same order, shape (N, D'); the widths may differ.
        neighbors: Neighbors k, less than N.

    Returns:
        Mean share of common neighbors in [0, 1]; unrelated features give k / (N - 1), features that are
        the same for all tiles 0, as they have no neighbors.

    Raises:
        ValueError: If the tables do not fit each other.
    """
    a, b = _pair(first, second)
    if _constant(a) or _constant(b):
        return 0.0
    rows = zip(nearest(a, neighbors), nearest(b, neighbors), strict=True)
    common = [np.intersect1d(p, q).size for p, q in rows]
    return float(np.mean(common) / neighbors)


def view_retrieval(first: ArrayLike, second: ArrayLike) -> float:
    """How often the nearest second view of a first view is that of the same tile.

    Args:
        first: Features of one view of each tile, shape (N, D).
        second: Features of another view, shape (N, D).

    Returns:
        Share of tiles in [0, 1]; unrelated features give 1 / N.

    Raises:
        ValueError: If the tables do not fit each other.
    """
    a, b = _pair(first, second, same_width=True)
    similarity = _units(a - a.mean(0)) @ _units(b - b.mean(0)).T
    return float((similarity.argmax(1) == np.arange(len(a))).mean())


def cosine_drift(source: ArrayLike, adapted: ArrayLike) -> float:
    """How far features turned away from those of the source.

    Args:
        source: Image features of the source, shape (N, D).
        adapted: Image features after the adaptation, shape (N, D).

    Returns:
        One minus the mean cosine, in [0, 2]; 0 for the same directions.

    Raises:
        ValueError: If the tables do not fit each other.
    """
    a, b = _pair(source, adapted, same_width=True)
    return float(1 - (_units(a) * _units(b)).sum(1).mean())


def cka_drift(source: ArrayLike, adapted: ArrayLike) -> float:
    """One minus linear centered kernel alignment (Kornblith et al. 2019, section 3).

    Args:
        source: Image features of the source, shape (N, D).
        adapted: Image features after the adaptation, shape (N, D'); the widths may differ.

    Returns:
        Drift in [0, 1]; 0 where features are the same up to rotation, scale and shift, 1 where either is
        constant.

    Raises:
        ValueError: If the tables do not fit each other.
    """
    first, second = _pair(source, adapted)
    a, b = (x - x.mean(0) for x in (first, second))
    if _constant(first) or _constant(second):
        return 1.0
    scale = np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return float(np.clip(1 - np.square(np.linalg.norm(a.T @ b)) / scale, 0, 1))


def crop_views(
    images: Tensor, seed: int = 0, area: tuple[float, float] = (0.4, 0.8)
) -> tuple[Tensor, Tensor]:
    """Two views of each tile, cropped, turned and mirrored independently.

    Args:
        images: Normalized tiles, shape (N, C, H, W).
        seed: Seed of the draws; the same tiles get the same views before and after.
        area: Smallest and largest share of a tile in a view, in (0, 1].

    Returns:
        Two stacks of views of the tiles' own size, each of shape (N, C, H, W).

    Raises:
        ValueError: If the shares are out of range.
    """
    if not 0 < area[0] <= area[1] <= 1:
        raise ValueError(f'area must be two shares in (0, 1], smallest first, got {area}')
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


def default_score(vit: ViT, images: Tensor, batch_size: int = 64, seed: int = 0) -> float:
    """`DEFAULT_SCORE` of one backbone on a sample of the archive.

    Args:
        vit: Backbone.
        images: Normalized tiles, shape (N, C, H, W).
        batch_size: Tiles per forward pass.
        seed: Seed of the crops.

    Returns:
        Share of tiles in [0, 1].
    """
    return view_retrieval(
        *(_features(vit, view, batch_size, mean_patch) for view in crop_views(images, seed))
    )


def compare_backbones(
    source: ViT,
    adapted: ViT,
    images: Tensor,
    *,
    neighbors: int = 10,
    batch_size: int = 64,
    seed: int = 0,
    pool: Callable[[ViT, Tensor], Tensor] | None = None,
) -> dict[str, dict[str, float]]:
    """Every label-free score of two backbones on a sample of the archive.

    Args:
        source: Backbone before.
        adapted: Backbone after, on the same device.
        images: Normalized tiles, shape (N, C, H, W); some hundred are enough.
        neighbors: Neighbors k; fewer where there are not enough tiles.
        batch_size: Tiles per forward pass.
        seed: Seed of the crops.
        pool: From a backbone and tiles to image features, shape (B, D); the mean patch token if None.

    Returns:
        `source` and `adapted`: the scores named in `SCORES`, with those of a comparison (drift, neighbors
        kept) 0, 0 and 1 for the source itself.

    Raises:
        ValueError: If there are fewer than three tiles.
    """
    if len(images) < 3:
        raise ValueError(f'label-free scores need at least 3 tiles, got {len(images)}')
    neighbors = min(neighbors, len(images) - 2)
    views = crop_views(images, seed)
    whole: dict[str, Array] = {}
    found: dict[str, dict[str, float]] = {}
    for name, vit in (('source', source), ('adapted', adapted)):
        whole[name], first, second = (
            _features(vit, stack, batch_size, pool or mean_patch) for stack in (images, *views)
        )
        found[name] = {
            'effective_rank': effective_rank(whole[name]),
            'centered_rank': effective_rank(whole[name], centered=True),
            'neighbor_agreement': neighbor_agreement(first, second, neighbors),
            'view_retrieval': view_retrieval(first, second),
            'cosine_drift': cosine_drift(whole['source'], whole[name]),
            'cka_drift': cka_drift(whole['source'], whole[name]),
            'neighbors_kept': neighbor_agreement(whole['source'], whole[name], neighbors),
        }
    return found


def mean_patch(vit: ViT, images: Tensor) -> Tensor:
    """Mean patch token of the last block, shape (B, D)."""
    return vit(images).patches.flatten(1, 2).mean(1)


@torch.inference_mode()
def _features(vit: ViT, images: Tensor, batch_size: int, pool: Callable[[ViT, Tensor], Tensor]) -> Array:
    training, device = vit.training, vit.cls_token.device
    vit.eval()
    parts = [pool(vit, batch.to(device)).double().cpu() for batch in images.split(batch_size)]
    vit.train(training)
    return torch.cat(parts).numpy()


def _table(features: ArrayLike, least: int = 2) -> Array:
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or len(x) < least or not x.shape[1]:
        raise ValueError(f'features must have shape (N, D) with at least {least} tiles, got {x.shape}')
    if not np.isfinite(x).all():
        raise ValueError('features hold numbers that are not finite: the backbone diverged')
    return x


def _pair(first: ArrayLike, second: ArrayLike, same_width: bool = False) -> tuple[Array, Array]:
    a, b = _table(first), _table(second)
    if len(a) != len(b) or (same_width and a.shape != b.shape):
        raise ValueError(f'features must be of the same tiles, got shapes {a.shape} and {b.shape}')
    return a, b


def _constant(x: Array) -> bool:
    """Whether tiles differ by no more than the rounding of a forward pass."""
    return bool(np.linalg.norm(x - x.mean(0)) <= 1e-5 * np.linalg.norm(x))


def _units(x: Array) -> Array:
    """Rows of length one; rows of zeros stay."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
