"""DINOv2's self-distillation on an adapted backbone."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.models import ViT
from explora_geo.models.heads import HeadConfig
from explora_geo.objectives import DINOv2, MaskConfig, TeacherConfig
from explora_geo.transforms import ViewsConfig

Build = Callable[..., ViT]
HEAD = HeadConfig(prototypes=24, hidden_dim=16, bottleneck_dim=8)
VIEWS = ViewsConfig(global_size=32, local_size=16, num_local=3)


@pytest.fixture
def build(build_vit: Build) -> Callable[..., DINOv2]:
    """Build a small objective on a ViT of 3 blocks and width 32, adapted as [L]-r4."""

    def make(adaptation: str = '[L]-r4', vit: dict[str, Any] | None = None, **kwargs: Any) -> DINOv2:
        backbone = build_vit(mask_token=True, dynamic_img_size=True, **(vit or {}))
        explora(backbone, ExPLoRAConfig.parse(adaptation))
        return DINOv2(backbone, **{'head': HEAD, 'views': VIEWS, 'head_warmup': 0, **kwargs})

    return make


def train(model: DINOv2, images: Tensor, steps: int, lr: float = 1e-3) -> list[float]:
    """Train as the task does and return the sums of the losses."""
    model.plan(steps, steps)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0)
    sums = []
    for step in range(steps):
        loss = torch.stack(list(model({'image': images}, step).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        model.before_step(step)
        optimizer.step()
        model.after_step(step + 1)
        sums.append(float(loss.detach()))
    return sums


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in module.named_parameters(remove_duplicate=False)}


def test_the_losses_are_the_four_of_dinov2(build: Callable[..., DINOv2], images: Tensor) -> None:
    losses = build()({'image': images}, 0)
    assert list(losses) == ['loss_dino_global', 'loss_dino_local', 'loss_ibot', 'loss_koleo']
    assert all(v.ndim == 0 and v.dtype == torch.float32 and v.requires_grad for v in losses.values())


@pytest.mark.parametrize('centering', ['centering', 'sinkhorn'])
def test_a_student_learns_what_a_still_teacher_says(
    build: Callable[..., DINOv2], images: Tensor, centering: Any
) -> None:
    model = build(teacher=TeacherConfig(momentum=1.0, centering=centering), koleo_weight=0)
    sums = train(model, images, 60, lr=5e-3)
    assert sum(sums[-10:]) < sum(sums[10:20])


def test_the_teacher_shares_every_frozen_tensor_and_no_other(build: Callable[..., DINOv2]) -> None:
    model = build()
    pairs = list(zip(model.student.named_parameters(), model.teacher.parts.named_parameters(), strict=True))
    for (name, mine), (same, theirs) in pairs:
        assert name == same and not theirs.requires_grad
        assert (mine.data_ptr() == theirs.data_ptr()) == (not mine.requires_grad), name
    shared = sum(p.numel() for (_, p), _ in pairs if not p.requires_grad)
    assert shared > 0.5 * sum(p.numel() for p in model.backbone.parameters())


def test_the_average_moves_what_trains_and_nothing_else(build: Callable[..., DINOv2], images: Tensor) -> None:
    model = build(teacher=TeacherConfig(momentum=0.9))
    before, student_before = snapshot(model.teacher.parts), snapshot(model.student)
    trained = {n for n, p in model.student.named_parameters() if p.requires_grad}
    train(model, images, 4)
    after, student = snapshot(model.teacher.parts), snapshot(model.student)
    assert {n for n in after if not torch.equal(after[n], before[n])} == trained
    assert {n for n in student if not torch.equal(student[n], student_before[n])} == trained


def test_the_local_crops_and_the_mask_may_be_left_out(build: Callable[..., DINOv2], images: Tensor) -> None:
    model = build(
        views=ViewsConfig(global_size=32, num_local=0), masks=MaskConfig(probability=0), koleo_weight=0
    )
    losses = model({'image': images}, 0)
    assert list(losses) == ['loss_dino_global']
    assert math.isfinite(float(losses['loss_dino_global'].detach()))


def test_views_of_the_datamodule_are_taken_as_they_are(
    build: Callable[..., DINOv2], images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build()
    views = model._multi_crop(images)
    monkeypatch.setattr(model, '_multi_crop', None)
    assert set(model({'image': images, 'views': views}, 0)) >= {'loss_dino_global', 'loss_dino_local'}


def test_a_backbone_without_a_mask_token_is_refused(build_vit: Build) -> None:
    with pytest.raises(ValueError, match='mask_token=True and dynamic_img_size=True'):
        DINOv2(build_vit())


@pytest.mark.parametrize('size', [{'global_size': 30}, {'local_size': 15}], ids=str)
def test_crops_that_are_no_multiple_of_the_patch_are_refused(
    build: Callable[..., DINOv2], size: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match='multiples of the patch size 8'):
        build(views=ViewsConfig(**{'global_size': 32, 'local_size': 16, **size}))
