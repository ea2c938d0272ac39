"""Losses of self-distillation, beside lightly's and written out."""

import math
from typing import Any

import pytest
import torch
from lightly.loss import DINOLoss, IBOTPatchLoss
from lightly.loss import swav_loss as lightly_swav
from torch.testing import assert_close

from explora_geo.objectives import losses
from explora_geo.objectives.losses import (
    TargetCentering,
    cross_entropies,
    dino_losses,
    entropies,
    ibot_loss,
    sinkhorn,
)

K, B = 12, 5


@pytest.mark.parametrize('local', [0, 1, 4])
def test_the_class_token_losses_add_up_to_lightlys(local: int) -> None:
    teacher, student = torch.randn(2, B, K), torch.randn(2 + local, B, K)
    theirs = DINOLoss(K, warmup_teacher_temp=0.05, teacher_temp=0.05)
    ours = TargetCentering(K)
    for _ in range(2):  # the second time with a center that has moved
        expected = theirs(list(teacher), list(student), epoch=0)
        targets = ours(teacher.flatten(0, 1), 0.05).unflatten(0, (2, B))
        loss_global, loss_local = dino_losses(targets, student[:2], student[2:] if local else None, 0.1)
        assert_close(loss_global + (0 if loss_local is None else loss_local), expected)
        assert_close(ours.center.value, theirs.center[0])


def test_the_masked_patch_loss_is_lightlys() -> None:
    mask = torch.rand(6, 3, 3) < 0.4
    mask[2] = False
    teacher, student = torch.randn(int(mask.sum()), K), torch.randn(int(mask.sum()), K)
    theirs, ours = IBOTPatchLoss(K, teacher_temp=0.05), TargetCentering(K)
    for _ in range(2):
        expected = theirs(teacher, student, mask)
        assert_close(ibot_loss(ours(teacher, 0.05), student, mask, 0.1), expected)
        assert_close(ours.center.value, theirs.center.value)


@pytest.mark.parametrize('rows', [1, 3, 100])
def test_the_masked_patch_loss_in_pieces_is_that_of_all_rows_with_its_gradient(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = torch.rand(4, 9) < 0.5
    mask[2] = False
    targets = torch.randn(int(mask.sum()), 32).softmax(-1)
    start = torch.randn(len(targets), 32).bfloat16()
    logits = start.clone().requires_grad_()
    monkeypatch.setattr(losses, '_PIECE', rows * 32)
    loss = ibot_loss(targets, logits, mask, 0.1)
    loss.backward()
    plain = start.double().requires_grad_()
    each = iter(torch.nn.functional.cross_entropy(plain / 0.1, targets.double(), reduction='none'))
    expected = sum(sum(next(each) for _ in range(n)) / n for n in mask.sum(1).tolist() if n) / 4
    expected.backward()
    assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    assert logits.grad is not None and logits.grad.dtype == torch.bfloat16
    assert_close(logits.grad.double(), plain.grad, rtol=0.01, atol=1e-6)


def test_cross_entropies_are_those_of_every_pair() -> None:
    targets, logits = torch.rand(2, B, K).softmax(-1), torch.randn(3, B, K)
    found = cross_entropies(targets, logits, 0.1)
    for t in range(2):
        for s in range(3):
            expected = torch.nn.functional.cross_entropy(logits[s] / 0.1, targets[t])
            assert_close(found[t, s], expected)


def test_losses_are_computed_in_float32() -> None:
    targets = torch.rand(2, B, K).softmax(-1)
    found = cross_entropies(targets, torch.randn(3, B, K).bfloat16(), 0.1)
    assert found.dtype == torch.float32
    assert TargetCentering(K)(torch.randn(4, K).bfloat16(), 0.05).dtype == torch.float32


def test_sinkhorn_is_lightlys() -> None:
    logits = torch.randn(7, K)
    assert_close(sinkhorn(logits, 0.3), lightly_swav.sinkhorn(logits - logits.max(), epsilon=0.3))


def test_sinkhorn_spreads_a_batch_evenly_wherever_its_logits_lie() -> None:
    logits = torch.randn(48, K)
    logits[:, 0] += 5  # every row likes the first prototype best
    targets = TargetCentering(K, 'sinkhorn')(logits, 1.0)
    assert_close(targets.sum(1), torch.ones(48))
    assert targets.sum(0).max() < 2 * 48 / K < logits.softmax(1).sum(0).max()
    assert_close(TargetCentering(K, 'sinkhorn')(logits + 300, 1.0), targets, atol=1e-4, rtol=0)


@pytest.mark.parametrize('kind', ['centering', 'sinkhorn'])
def test_validation_leaves_the_centre_alone(kind: Any) -> None:
    assign = TargetCentering(K, kind).eval()
    assign(torch.randn(4, K), 0.05)
    assert torch.equal(assign.center.value, torch.zeros(1, K))


def test_entropies_tell_both_kinds_of_collapse() -> None:
    uniform = torch.full((8, K), 1 / K)
    one = torch.eye(K)[torch.zeros(8, dtype=torch.long)]
    each = torch.eye(K)
    assert torch.stack(entropies(uniform)).tolist() == pytest.approx([1, 1])
    assert torch.stack(entropies(one)).tolist() == pytest.approx([0, 0])
    assert torch.stack(entropies(each)).tolist() == pytest.approx([0, 1])
    half = torch.tensor([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [1, 0, 0, 0]])
    assert entropies(half)[0].item() == pytest.approx(2 / 3 * math.log(2) / math.log(4))
    # Two sharp rows can use two prototypes at most, and do.
    assert entropies(each[:2])[1].item() == pytest.approx(1)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'centering' or 'sinkhorn', got 'swav'"):
        TargetCentering(K, 'swav')  # type: ignore[arg-type]
