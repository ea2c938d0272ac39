"""Frozen features of images."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from explora_geo.models.turns import average_features
from explora_geo.models.vit import ViT

Array = NDArray[np.float32]


class FeatureTable(NamedTuple):
    """Features of a data set, as the cache holds them: in half precision.

    Attributes:
        cls: Class tokens of the last blocks, last block last, shape (N, blocks, D).
        avg: Mean patch tokens of the same blocks, over slots and patches, shape (N, blocks, D).
        label: Classes, shape (N,).
        skipped: Images that could not be read, `<path>: <reason>`.
    """

    cls: Tensor
    avg: Tensor
    label: Tensor
    skipped: tuple[str, ...] = ()

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """One table of several, in order."""
        columns = (torch.cat([getattr(p, name) for p in parts]) for name in ('cls', 'avg', 'label'))
        tokens, averages, labels = columns
        return cls(tokens, averages, labels, tuple(text for part in parts for text in part.skipped))

    def take(self, index: Tensor) -> Self:
        """Some of the rows."""
        return self._replace(cls=self.cls[index], avg=self.avg[index], label=self.label[index])

    def stacked(self, blocks: int) -> Tensor:
        """One vector per image, shape (N, (1 + blocks)·D).

        The mean patch token of the last block comes first, then class tokens from the last block backwards,
        so that every variant of the sweep is a slice.
        """
        tokens = self.cls[:, -blocks:].flip(1).flatten(1)
        return torch.cat([self.avg[:, -1], tokens], dim=1)

    def arrays(self, last_blocks: int = 1) -> dict[str, Array]:
        """Features for methods without a sweep over blocks.

        Args:
            last_blocks: Blocks that are read, last ones first to count; all of a shallower backbone.

        Returns:
            Class and mean patch token of the last block by token kind, or the class tokens of several
            blocks, shape (N, blocks·D), by a name that says so.
        """
        if last_blocks == 1:
            return {kind: getattr(self, kind)[:, -1].float().numpy() for kind in ('cls', 'avg')}
        return {f'cls of {last_blocks} blocks': self.cls[:, -last_blocks:].flatten(1).float().numpy()}


@torch.no_grad()
def extract_features(
    vit: ViT, batches: Iterable[Mapping[str, Any]], blocks: int = 4, turns: int = 1
) -> tuple[dict[str, Array], NDArray[np.int64]]:
    """Class and mean patch tokens of the last blocks.

    Args:
        vit: Backbone; run in evaluation mode on its own device.
        batches: Sample dicts with normalized `image`, shape (B, C, H, W) or as the tokenizer says, `label`,
            shape (B,), and `timestamps` for temporal tokenizers.
        blocks: How many of the last blocks.
        turns: Orientations of each image that features are averaged over: 1, 4 or 8.

    Returns:
        `cls` and `avg`, each of shape (N, blocks, D), last block last, and the labels, shape (N,).

    Raises:
        ValueError: If there is no batch, or `turns` is another number.
    """
    vit.eval()
    device = vit.cls_token.device
    cls: list[Tensor] = []
    avg: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in batches:
        times = batch.get('timestamps')
        times = None if times is None else times.to(device)
        found = average_features(vit, batch['image'].to(device), range(-blocks, 0), turns, timestamps=times)
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
