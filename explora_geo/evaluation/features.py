"""Frozen features of images."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from explora_geo.models.vit import ViT

Array = NDArray[np.float32]


@torch.no_grad()
def extract_features(
    vit: ViT, batches: Iterable[Mapping[str, Any]], blocks: int = 4
) -> tuple[dict[str, Array], NDArray[np.int64]]:
    """Class and mean patch tokens of the last blocks.

    Args:
        vit: Backbone; run in evaluation mode on its own device.
        batches: Sample dicts with normalised `image`, shape (B, C, H, W) or as the tokenizer says, `label`,
            shape (B,), and `timestamps` for temporal tokenizers.
        blocks: How many of the last blocks.

    Returns:
        `cls` and `avg`, each of shape (N, blocks, D), last block last, and the labels, shape (N,).

    Raises:
        ValueError: If there is no batch.
    """
    vit.eval()
    device = vit.cls_token.device
    cls: list[Tensor] = []
    avg: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in batches:
        times = batch.get('timestamps')
        times = None if times is None else times.to(device)
        found = vit.intermediate(batch['image'].to(device), range(-blocks, 0), timestamps=times)
        cls.append(torch.stack([f.cls for f in found], dim=1).float().cpu())
        avg.append(torch.stack([f.patches.flatten(1, 2).mean(1) for f in found], dim=1).float().cpu())
        labels.append(batch['label'].cpu())
    if not cls:
        raise ValueError('there are no images to extract features from')
    features = {'cls': torch.cat(cls).numpy(), 'avg': torch.cat(avg).numpy()}
    return features, torch.cat(labels).numpy()


def feature_sets(features: Mapping[str, Array]) -> dict[str, Array]:
    """The paper's choices for a linear probe (appendix D.1): token kind x last 1 or last 4 blocks.

    Args:
        features: Output of `extract_features`.

    Returns:
        Features by name, each of shape (N, D) or (N, blocks·D).
    """
    sets = {}
    for kind, values in features.items():
        sets[f'{kind}, last block'] = values[:, -1]
        sets[f'{kind}, last {values.shape[1]} blocks'] = values.reshape(len(values), -1)
    return sets
