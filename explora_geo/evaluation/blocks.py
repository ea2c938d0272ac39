"""What the blocks of a backbone know (the paper's block-wise analysis, ICML version)."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from explora_geo.evaluation.features import evaluating
from explora_geo.models.vit import ViT


class BlockRow(NamedTuple):
    """One block's patch tokens, through the final norm; accuracies are of linear classifiers, in [0, 1]."""

    block: int  # from 1
    eigenvalue_mean: float  # of the covariance of the tokens
    eigenvalue_variance: float
    position: float  # accuracy by which a patch tells its place in its image
    label: float  # accuracy by which a patch tells the class of its image


def analyze_blocks(
    vit: ViT,
    train: Iterable[Mapping[str, Any]],
    test: Iterable[Mapping[str, Any]],
    patches: int = 16,
    seed: int = 0,
) -> list[BlockRow]:
    """Analyse every block: how spread its patch tokens are, and what each of them tells.

    Args:
        vit: Plain or merged backbone, on the device to use.
        train: Batches with normalized `image`, shape (B, C, H, W), and `label`, to fit classifiers on.
        test: Batches on which they are measured.
        patches: Patches drawn of each image; the same places for every block.
        seed: Seed of the draw.
    """
    tokens, *known = _tokens(vit, train, patches, seed)
    others, *wanted = _tokens(vit, test, patches, seed)
    rows = []
    for number, (x, y) in enumerate(zip(tokens, others, strict=True), start=1):
        values = eigenvalues(x)
        told = (linear_accuracy(x, a, y, b) for a, b in zip(known, wanted, strict=True))
        rows.append(BlockRow(number, float(values.mean()), float(values.var()), *told))
    return rows


def eigenvalues(tokens: NDArray[Any]) -> NDArray[Any]:
    """Eigenvalues of the covariance of tokens, (N, D) -> (D,), largest first."""
    covariance = np.cov(tokens.astype(np.float64), rowvar=False)
    return np.maximum(np.linalg.eigvalsh(covariance)[::-1], 0)


def linear_accuracy(x: NDArray[Any], y: NDArray[Any], test: NDArray[Any], expected: NDArray[Any]) -> float:
    """Accuracy in [0, 1] on tokens `test`, (M, D), of a ridge classifier of tokens `x`, (N, D)."""
    model = make_pipeline(StandardScaler(), RidgeClassifier())
    return float(model.fit(x, y).score(test, expected))


def _tokens(
    vit: ViT, batches: Iterable[Mapping[str, Any]], patches: int, seed: int
) -> tuple[list[NDArray[Any]], NDArray[Any], NDArray[Any]]:
    """Patch tokens by block, each of shape (N·patches, D), their places and their images' classes."""
    generator = torch.Generator().manual_seed(seed)
    tokens: list[list[Tensor]] = [[] for _ in range(vit.depth)]
    places: list[Tensor] = []
    labels: list[Tensor] = []
    with evaluating(vit) as device:
        for batch in batches:
            times = batch.get('timestamps')
            times = None if times is None else times.to(device)
            found = vit.intermediate(batch['image'].to(device), range(vit.depth), timestamps=times)
            images, _, length, _ = found[0].patches.shape
            chosen = torch.rand(images, length, generator=generator).argsort(dim=1)[:, :patches]
            rows = torch.arange(images)[:, None]
            for kept, features in zip(tokens, found, strict=True):
                # Slots are reduced first, so that a place is one token.
                kept.append(features.patches.mean(1).cpu()[rows, chosen].flatten(0, 1))
            places.append(chosen.flatten())
            labels.append(batch['label'].repeat_interleave(chosen.shape[1]))
    return [torch.cat(x).numpy() for x in tokens], torch.cat(places).numpy(), torch.cat(labels).numpy()
