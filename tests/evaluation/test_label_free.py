"""Label-free scores: invariants, collapsed features, and a backbone beside itself."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from explora_geo.evaluation.label_free import (
    DEFAULT_SCORE,
    SCORES,
    cka_drift,
    compare_backbones,
    cosine_drift,
    crop_views,
    effective_rank,
    nearest,
    neighbor_agreement,
    view_retrieval,
)
from explora_geo.models import ViT

Build = Callable[..., ViT]


def clusters(tiles: int = 60, width: int = 16, seed: int = 0) -> np.ndarray:
    """Features in six groups around a common mean, as those of real tiles are."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(6, width))
    return 5 + centers[np.arange(tiles) % 6] + 0.1 * rng.normal(size=(tiles, width))


def rotation(width: int = 16) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(1).normal(size=(width, width)))[0]


def test_the_effective_rank_counts_even_directions() -> None:
    assert effective_rank(np.eye(6)) == pytest.approx(6)
    assert effective_rank(torch.ones(20, 8)) == pytest.approx(1)
    same = np.ones((200, 32)) + 1e-4 * np.random.default_rng(0).normal(size=(200, 32))
    assert effective_rank(same) == pytest.approx(1, abs=0.02)
    assert 50 < effective_rank(np.random.default_rng(0).normal(size=(1000, 64))) < 64


def test_a_mean_that_dominates_hides_the_rank_until_it_is_taken_off() -> None:
    x = 100 + np.random.default_rng(0).normal(size=(300, 16))
    assert effective_rank(x) < 2 and effective_rank(x, centered=True) > 14


@pytest.mark.parametrize('scale', [1.0, 0.01, 30.0])
def test_rotation_and_scale_of_features_change_no_score(scale: float) -> None:
    x = clusters()
    turned = scale * x @ rotation()
    assert effective_rank(turned) == pytest.approx(effective_rank(x))
    assert np.array_equal(nearest(turned, 5), nearest(x, 5))
    assert neighbor_agreement(x, turned) == 1
    assert cka_drift(x, turned) == pytest.approx(0, abs=1e-9)


def test_the_same_features_have_not_drifted() -> None:
    x = clusters()
    assert cosine_drift(x, x) == pytest.approx(0) and cka_drift(x, x) == pytest.approx(0)
    assert neighbor_agreement(x, x) == view_retrieval(x, x) == 1
    assert cosine_drift(x, -x) == pytest.approx(2)


def test_unrelated_features_agree_by_chance() -> None:
    a, b = (np.random.default_rng(seed).normal(size=(400, 16)) for seed in (0, 1))
    assert neighbor_agreement(a, b, 20) == pytest.approx(20 / 399, abs=0.01)
    assert view_retrieval(a, b) < 0.02
    assert cka_drift(a, b) > 0.9


@pytest.mark.parametrize('noise', [0.0, 1e-7])
def test_collapsed_features_do_not_pass_for_agreement(noise: float) -> None:
    flat = np.full((60, 16), 3.0) + noise * np.random.default_rng(0).normal(size=(60, 16))
    assert neighbor_agreement(flat, flat) == 0
    assert cka_drift(clusters(), flat) == 1
    assert effective_rank(flat) == pytest.approx(1, abs=1e-3)


def test_noise_lowers_agreement_and_retrieval_step_by_step() -> None:
    rng = np.random.default_rng(2)
    x = clusters()
    scores = []
    for noise in (0.02, 0.3, 3.0):
        a, b = (x + noise * rng.normal(size=x.shape) for _ in range(2))
        scores.append((neighbor_agreement(a, b, 5), view_retrieval(a, b), 1 - cka_drift(a, b)))
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 3


def test_widths_may_differ_where_no_direction_is_compared() -> None:
    x = clusters()
    wide = np.hstack([x, x]) / 2
    assert neighbor_agreement(x, wide) == 1 and cka_drift(x, wide) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: effective_rank(np.zeros(5)), r'shape \(N, D\)'),
        (lambda: effective_rank(np.full((4, 2), np.nan)), 'non-finite values'),
        (lambda: neighbor_agreement(clusters(), clusters()[:-1]), 'the same tiles'),
        (lambda: cosine_drift(clusters(), clusters(width=8)), 'the same tiles'),
        (lambda: nearest(clusters(10), 10), 'from 1 to 9'),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_two_views_differ_and_come_back_with_the_seed(images: Tensor) -> None:
    first, second = crop_views(images, seed=3)
    assert first.shape == second.shape == images.shape
    assert not torch.equal(first, second)
    assert torch.equal(first, crop_views(images, seed=3)[0])
    whole, _ = crop_views(images, area=(1, 1))
    assert torch.allclose(whole.sum((2, 3)), images.sum((2, 3)), atol=1e-2)


def test_views_of_tiles_that_are_not_square_keep_their_shape() -> None:
    assert crop_views(torch.rand(5, 2, 12, 20))[1].shape == (5, 2, 12, 20)


def test_a_backbone_beside_itself_has_not_moved_a_damaged_one_has(build_vit: Build, images: Tensor) -> None:
    vit = build_vit().train()
    damaged = copy.deepcopy(vit)
    with torch.no_grad():
        damaged.blocks[-1].mlp.fc2.weight.normal_()
    found = compare_backbones(vit, vit, images, neighbors=3)
    assert found['source'] == found['adapted'] and vit.training
    assert found['source'].keys() == SCORES.keys() and DEFAULT_SCORE in SCORES
    assert found['adapted']['cosine_drift'] == pytest.approx(0)
    assert found['adapted']['neighbors_kept'] == 1
    moved = compare_backbones(vit, damaged, images, neighbors=3)
    assert moved['source'] == found['source']
    assert moved['adapted']['cosine_drift'] > 0.1 and moved['adapted']['cka_drift'] > 0.01


def test_too_few_tiles_are_refused(build_vit: Build, images: Tensor) -> None:
    with pytest.raises(ValueError, match='at least 3 tiles'):
        compare_backbones(build_vit(), build_vit(), images[:2])
