"""Frozen features."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from explora_geo.evaluation import extract_features, feature_sets
from explora_geo.models import ViT

Build = Callable[..., ViT]


def test_features_are_the_tokens_of_the_last_blocks_in_order(build_vit: Build, images: Tensor) -> None:
    vit = build_vit()
    batches = [{'image': images[i : i + 3], 'label': torch.arange(8)[i : i + 3]} for i in (0, 3, 6)]
    features, labels = extract_features(vit, batches, blocks=2)
    assert labels.tolist() == list(range(8))
    assert features['cls'].shape == features['avg'].shape == (8, 2, 32)
    vit.eval()
    with torch.no_grad():
        last = vit(images)
        before = vit.intermediate(images, [1])[0]
    np.testing.assert_allclose(features['cls'][:, -1], last.cls, atol=1e-5)
    np.testing.assert_allclose(features['avg'][:, -1], last.patches[:, 0].mean(1), atol=1e-5)
    np.testing.assert_allclose(features['cls'][:, 0], before.cls, atol=1e-5)


def test_stochastic_depth_is_off(build_vit: Build, images: Tensor) -> None:
    vit = build_vit(drop_path_rate=0.9).train()
    batch = [{'image': images, 'label': torch.zeros(8)}]
    first, second = (extract_features(vit, batch, blocks=1)[0]['cls'] for _ in range(2))
    assert np.array_equal(first, second)


def test_feature_sets_are_the_papers_choices() -> None:
    features = {kind: np.random.rand(5, 4, 3).astype(np.float32) for kind in ('cls', 'avg')}
    sets = feature_sets(features)
    assert {name: value.shape for name, value in sets.items()} == {
        'cls, last block': (5, 3),
        'cls, last 4 blocks': (5, 12),
        'avg, last block': (5, 3),
        'avg, last 4 blocks': (5, 12),
    }
    assert np.array_equal(sets['cls, last block'], features['cls'][:, 3])
    assert np.array_equal(sets['avg, last 4 blocks'][:, 6:9], features['avg'][:, 2])


def test_no_images_are_refused(build_vit: Build) -> None:
    with pytest.raises(ValueError, match='no images'):
        extract_features(build_vit(), [])
