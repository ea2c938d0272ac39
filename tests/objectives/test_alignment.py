"""Patch kernel alignment teaches orientation without heads."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.models import ViT, create_vit
from explora_geo.models.readout import turn, turn_back
from explora_geo.objectives import PatchAlignment


def student(**kwargs: Any) -> ViT:
    torch.manual_seed(0)
    vit = create_vit('vit_tiny_patch8_32', **kwargs)
    explora(vit, ExPLoRAConfig.parse('[L]-r4'))
    return vit


def alignment(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Centered kernel alignment of features (N, D), as Kornblith et al. (2019) write it."""
    x, y = (z - z.mean(0) for z in (x, y))
    return (x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())


def test_the_loss_is_one_less_the_alignment_with_the_teacher(small_names: None) -> None:
    objective = PatchAlignment(student(), contrast=0, oriented=True)
    image = torch.randn(3, 3, 32, 32)
    assert abs(objective({'image': image}, 0)['loss_alignment'].item()) < 1e-5  # the teacher's own image
    with torch.no_grad():
        for parameter in objective.backbone.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter) * parameter.requires_grad)
        theirs = objective.teacher.parts['backbone'](image).patches[:, 0]
        mine = objective.backbone(image).patches[:, 0]
    expected = 1 - torch.stack([alignment(*pair) for pair in zip(mine, theirs, strict=True)]).mean()
    found = objective({'image': image}, 0)['loss_alignment']
    assert found > 0.01
    assert_close(found.detach(), expected, atol=1e-4, rtol=1e-3)


def test_learning_brings_orientations_together(small_names: None) -> None:
    objective = PatchAlignment(student())
    image = torch.randn(8, 3, 32, 32)

    def disagreement() -> float:
        with torch.no_grad():
            found = [objective.backbone(turn(image, k)).patches[:, 0] for k in range(4)]
        grid = [x.mT.unflatten(2, (4, 4)) for x in found]
        back = [turn_back(x, k).flatten(2).mT for k, x in enumerate(grid)]
        return float(
            torch.stack(
                [1 - alignment(a, b) for x in back[1:] for a, b in zip(x, back[0], strict=True)]
            ).mean()
        )

    before = disagreement()
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=3e-3)
    for step in range(60):
        optimizer.zero_grad()
        objective({'image': image}, step)['loss_alignment'].backward()
        optimizer.step()
        objective.after_step(step + 1)
    assert disagreement() < 0.8 * before


def test_the_teacher_follows_and_costs_only_what_trains(small_names: None) -> None:
    vit = student()
    objective = PatchAlignment(vit, momentum=0.75)
    objective.set_schedule(1_000_000, 1.0)
    with torch.no_grad():
        vit.norm.weight.add_(4)
    before = objective.teacher.parts['backbone'].norm.weight.clone()
    objective.after_step(1)
    assert_close(objective.teacher.parts['backbone'].norm.weight, before + 1)
    objective.after_step(1_000_000)  # which ends as it stands
    assert_close(objective.teacher.parts['backbone'].norm.weight, before + 1)
    own = {id(p) for p in vit.parameters()}
    copied = sum(p.numel() for p in objective.teacher.parameters() if id(p) not in own)
    assert copied == sum(p.numel() for p in vit.parameters() if p.requires_grad)


def test_groups_of_bands_and_dates_are_patches_of_the_same_image(small_names: None) -> None:
    groups = {
        'tokenizer': 'group-channel',
        'tokenizer_options': {'channel_groups': [['red'], ['green', 'blue']]},
    }
    dates = {'tokenizer': 'temporal', 'tokenizer_options': {'num_frames': 2}}
    for options, image, times in (
        (groups, torch.randn(2, 3, 32, 32), None),
        (dates, torch.randn(2, 2, 3, 32, 32), torch.randint(0, 12, (2, 2, 3))),
    ):
        objective = PatchAlignment(student(**options))
        loss = objective({'image': image, 'timestamps': times}, 0)['loss_alignment']
        loss.backward()
        assert torch.isfinite(loss) and 0 < loss < 2
        assert objective.watched is not None and objective.watched.shape == (2, objective.backbone.embed_dim)


@pytest.mark.parametrize('arguments', [{'momentum': 1.5}, {'contrast': 1.0}, {'contrast': -0.1}])
def test_bad_arguments_are_refused(arguments: dict[str, Any], small_names: None) -> None:
    with pytest.raises(ValueError, match=r'momentum must be in \[0, 1\] and contrast in \[0, 1\)'):
        PatchAlignment(student(), **arguments)
