"""Block-wise analysis of a backbone, as in the ICML version of the paper."""

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
    """Analysis of one block's patch tokens after the final norm; accuracies of linear probes in [0, 1]."""

    block: int  # from 1
    eigenvalue_mean: float  # of the covariance of the tokens
    eigenvalue_variance: float
    position: float  # accuracy of predicting a patch's position in its image
    label: float  # accuracy of predicting the class of a patch's image


def analyze_blocks(
    vit: ViT,
    train: Iterable[Mapping[str, Any]],
    test: Iterable[Mapping[str, Any]],
    patches: int = 16,
    seed: int = 0,
) -> list[BlockRow]:
    """Analyze every block: the spread of its patch tokens, and the position and class they encode.

    Args:
        vit: Plain or merged backbone, on the device to use.
        train: Batches with normalized `image`, shape (B, C, H, W), and `label`, to fit linear probes on.
        test: Batches to score them on.
        patches: Patches drawn from each image, at the same positions for every block.
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
    """Compute the eigenvalues of the covariance of tokens, (N, D) -> (D,), largest first."""
    covariance = np.cov(tokens.astype(np.float64), rowvar=False)
    return np.maximum(np.linalg.eigvalsh(covariance)[::-1], 0)


def linear_accuracy(x: NDArray[Any], y: NDArray[Any], test: NDArray[Any], expected: NDArray[Any]) -> float:
    """Fit a ridge classifier to tokens `x`, (N, D); return its accuracy in [0, 1] on `test`, (M, D)."""
    model = make_pipeline(StandardScaler(), RidgeClassifier())
    return float(model.fit(x, y).score(test, expected))


def _tokens(
    vit: ViT, batches: Iterable[Mapping[str, Any]], patches: int, seed: int
) -> tuple[list[NDArray[Any]], NDArray[Any], NDArray[Any]]:
    """Return patch tokens by block, each (N·patches, D), with their positions and their images' classes."""
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
                # Slots are averaged first, so that each position has one token.
                kept.append(features.patches.mean(1).cpu()[rows, chosen].flatten(0, 1))
            places.append(chosen.flatten())
            labels.append(batch['label'].repeat_interleave(chosen.shape[1]))
    return [torch.cat(x).numpy() for x in tokens], torch.cat(places).numpy(), torch.cat(labels).numpy()
