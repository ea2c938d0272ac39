"""Block-wise analysis, on features of which the answer is known."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from explora_geo.evaluation import analyze_blocks
from explora_geo.evaluation.blocks import eigenvalues, linear_accuracy
from explora_geo.models import create_vit


def batches(image: Tensor, label: Tensor) -> list[dict[str, Tensor]]:
    return [{'image': x, 'label': y} for x, y in zip(image.split(16), label.split(16), strict=True)]


def noise(images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images whose class is the brightness of all their pixels."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(images) % 2
    image = torch.randn(images, 3, 32, 32, generator=generator) + 4 * label.view(-1, 1, 1, 1)
    return image, label


def test_places_and_classes_that_tokens_tell_are_found(small_names: None) -> None:
    vit = create_vit('vit_tiny_patch8_32', learned_position=False)
    vit.pos_embed.data *= 20  # louder than the noise
    rows = analyze_blocks(vit, batches(*noise(48, 0)), batches(*noise(16, 1)), patches=8)
    assert [row.block for row in rows] == [1, 2, 3]
    assert rows[0].position > 0.5 and rows[0].label > 0.9  # of 16 places and 2 classes


def test_without_positions_no_place_is_told(small_names: None) -> None:
    vit = create_vit('vit_tiny_patch8_32')
    nn.init.zeros_(vit.pos_embed)
    rows = analyze_blocks(vit, batches(*noise(48, 0)), batches(*noise(32, 1)), patches=8)
    assert all(row.position < 0.2 for row in rows)


def test_eigenvalues_are_those_of_the_covariance(small_names: None) -> None:
    vit = create_vit('vit_tiny_patch8_32')
    image, label = noise(8, 0)
    (row, *_) = analyze_blocks(vit, batches(image, label), batches(image, label), patches=16)
    with torch.no_grad():
        tokens = vit.intermediate(image, [0])[0].patches.reshape(-1, vit.embed_dim)
    values = torch.linalg.eigvalsh(torch.cov(tokens.T))
    assert_close(row.eigenvalue_mean, float(values.mean()), rtol=1e-4, atol=1e-7)
    assert_close(row.eigenvalue_variance, float(values.var(correction=0)), rtol=1e-4, atol=1e-7)


def test_eigenvalues_are_the_variances_along_the_axes() -> None:
    generator = np.random.default_rng(0)
    tokens = (generator.normal(size=(20_000, 3)) * [3, 1, 2]).astype(np.float32)
    assert eigenvalues(tokens) == pytest.approx([9, 4, 1], rel=0.05)
    turn = np.linalg.qr(generator.normal(size=(3, 3)))[0].astype(np.float32)
    assert eigenvalues(tokens @ turn) == pytest.approx(eigenvalues(tokens), rel=1e-3)


def test_a_linear_classifier_finds_what_is_there_and_nothing_else() -> None:
    generator = np.random.default_rng(0)
    target = np.arange(400) % 4
    noise = generator.normal(size=(400, 8)).astype(np.float32)
    train = np.arange(400) < 200
    told = noise + 4 * np.eye(8, dtype=np.float32)[target]
    assert linear_accuracy(told[train], target[train], told[~train], target[~train]) > 0.95
    assert linear_accuracy(noise[train], target[train], noise[~train], target[~train]) < 0.45
