"""Our losses are those of facebookresearch/dinov2: each one, the centres after it, and Sinkhorn."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightly.loss import KoLeoLoss
from torch import Tensor
from torch.testing import assert_close

from explora_geo.objectives.losses import TargetCentering, dino_losses, ibot_loss


@pytest.fixture(scope='module')
def losses(golden: Callable[[str], Any]) -> Any:
    return golden('dinov2_losses')


def assignment(losses: Any, kind: Any, center: Tensor) -> TargetCentering:
    config = losses.config
    found = TargetCentering(config['out_dim'], kind, config['center_momentum'])
    found.center.center.copy_(center.view(1, -1))
    return found


def close(actual: Tensor, expected: Tensor) -> None:
    assert_close(actual, expected, rtol=1e-5, atol=0)


def test_targets_and_the_centre_of_class_tokens(losses: Any) -> None:
    io, config = losses.io, losses.config
    assign = assignment(losses, 'centering', io['center'])
    targets = assign(io['teacher_cls'], config['teacher_temp'])
    expected = io['teacher_probs'].flatten(0, 1)
    assert_close(targets, expected, atol=1e-5, rtol=0)
    assert_close(assign.center.value, io['center_after'].view(1, -1), atol=1e-6, rtol=0)


def test_class_token_losses_of_global_and_local_crops(losses: Any) -> None:
    io, config = losses.io, losses.config
    targets = assignment(losses, 'centering', io['center'])(io['teacher_cls'], config['teacher_temp'])
    loss_global, loss_local = dino_losses(
        targets.unflatten(0, (config['n_global'], -1)),
        io['student_global_cls'].unflatten(0, (config['n_global'], -1)),
        io['student_local_cls'].unflatten(0, (config['n_local'], -1)),
        config['student_temp'],
    )
    assert loss_local is not None
    close(loss_global, io['loss_dino_global'])
    close(loss_local, io['loss_dino_local'])


def test_the_masked_patch_loss_and_its_centre(losses: Any) -> None:
    io, config = losses.io, losses.config
    assign = assignment(losses, 'centering', io['ibot_center'])
    targets = assign(io['teacher_patch'], config['teacher_temp'])
    close(ibot_loss(targets, io['student_patch'], io['masks'], config['student_temp']), io['loss_ibot'])
    assert_close(assign.center.value, io['ibot_center_after'].view(1, -1), atol=1e-6, rtol=0)


def test_koleo_over_the_two_crops(losses: Any) -> None:
    crops = losses.io['koleo_features'].chunk(losses.config['n_global'])
    close(torch.stack([KoLeoLoss()(x) for x in crops]).sum(), losses.io['loss_koleo'])


def test_sinkhorn_knopp(losses: Any) -> None:
    io, config = losses.io, losses.config
    found = assignment(losses, 'sinkhorn', io['center'])(io['teacher_cls'], config['teacher_temp'])
    assert_close(found, io['sinkhorn'], atol=1e-5, rtol=0)
