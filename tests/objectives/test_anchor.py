"""The anchor teaches orientation and keeps the source."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.models import ViT, create_vit
from explora_geo.models.heads import HeadConfig
from explora_geo.models.readout import turn
from explora_geo.objectives import Anchor, DINOv2, LossConfig
from explora_geo.objectives.anchor import AnchorConfig, ArchiveStatistics


def student(adaptation: str = '[L]-r4', **kwargs: Any) -> ViT:
    torch.manual_seed(0)
    vit = create_vit('vit_tiny_patch8_32', **kwargs)
    explora(vit, ExPLoRAConfig.parse(adaptation))
    return vit


def test_targets_of_a_turned_image_are_the_turned_targets(small_names: None) -> None:
    anchor = Anchor(student(), turns=8)
    image = torch.randn(2, 3, 32, 32)
    targets = anchor.anchor.targets(image)
    for k in range(8):
        assert_close(anchor.anchor.targets(turn(image, k)), turn(targets, k), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(
        Anchor(student(), turns=1).anchor.targets(turn(image, 1)), turn(targets, 1), atol=1e-2
    )


def test_the_source_stays_and_costs_only_what_trains(small_names: None) -> None:
    vit = student()
    anchor = Anchor(vit)
    image = torch.randn(4, 3, 32, 32)
    before = anchor.anchor.targets(image)
    optimizer = torch.optim.SGD([p for p in anchor.parameters() if p.requires_grad], lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        torch.stack(list(anchor({'image': image}, step).values())).sum().backward()
        optimizer.step()
        anchor.after_step(step + 1)
    assert torch.equal(anchor.anchor.targets(image), before)
    own = {id(p) for p in vit.parameters()}
    copied = sum(p.numel() for p in anchor.anchor.source.parameters() if id(p) not in own)
    assert copied == sum(p.numel() for p in vit.parameters() if p.requires_grad)


def test_an_image_without_direction_costs_nothing_at_the_start(small_names: None) -> None:
    vit = create_vit('vit_tiny_patch8_32', learned_position=False)
    with torch.no_grad():
        vit.pos_embed.zero_()  # without positions, patches of one value look the same from everywhere
    explora(vit, ExPLoRAConfig.parse('[L]-r4'))
    losses = Anchor(vit, whitening=0)({'image': torch.ones(4, 3, 32, 32) * torch.randn(4, 3, 1, 1)}, 0)
    assert all(abs(loss.item()) < 1e-5 for loss in losses.values())


def test_learning_brings_orientations_together(small_names: None) -> None:
    vit = student('[L]-r8')
    anchor = Anchor(vit, whitening=0)
    image = torch.randn(8, 3, 32, 32)

    def disagreement() -> float:
        with torch.no_grad():
            found = torch.stack([Anchor.pool(vit(turn(image, k))) for k in range(8)])
        return float(found.std(0).mean() / found.std(1).mean())

    before = disagreement()
    optimizer = torch.optim.AdamW([p for p in anchor.parameters() if p.requires_grad], lr=3e-3)
    for step in range(60):
        optimizer.zero_grad()
        torch.stack(list(anchor({'image': image}, step).values())).sum().backward()
        optimizer.step()
    assert disagreement() < 0.8 * before


def test_statistics_are_those_of_all_batches_and_stay_in_validation() -> None:
    features = torch.randn(50, 6) @ torch.randn(6, 6) + 3
    statistics = ArchiveStatistics(6)
    for batch in features.split([7, 20, 23]):
        statistics.add(batch)
    assert_close(statistics.mean, features.mean(0), atol=1e-4, rtol=1e-4)
    assert_close(statistics.covariance, features.T.cov(correction=0), atol=1e-3, rtol=1e-3)


def test_validation_leaves_the_statistics_alone(small_names: None) -> None:
    anchor = Anchor(student())
    anchor({'image': torch.randn(4, 3, 32, 32)}, 0)
    before = anchor.anchor.archive.covariance.clone()
    assert before.any() and not torch.equal(anchor.anchor.archive.matrix, torch.eye(len(before)))
    anchor.eval()({'image': torch.randn(4, 3, 32, 32)}, 1)
    assert torch.equal(anchor.anchor.archive.covariance, before)


@pytest.mark.parametrize('power', [0.0, 0.5, 1.0])
def test_whitening_evens_out_directions_and_keeps_mean_and_length(power: float) -> None:
    torch.manual_seed(0)
    features = torch.randn(2000, 5) @ torch.diag(torch.tensor([10.0, 3, 1, 1, 1])) + 2
    statistics = ArchiveStatistics(5)
    statistics.add(features)
    statistics.whiten(power, ridge=1e-6)
    found = statistics.whitened(features[:, None, :, None, None]).flatten(1)
    assert_close(found.mean(0), features.mean(0), atol=1e-3, rtol=1e-3)
    lengths = [(x - x.mean(0)).square().sum(1).mean() for x in (found, features)]
    assert_close(*lengths, atol=1e-2, rtol=1e-3)
    ratio = found.T.cov().diagonal().sqrt()
    expected = {0.0: 10.0, 0.5: 10**0.5, 1.0: 1.0}[power]
    assert_close(float(ratio[0] / ratio[2]), expected, atol=0.05 * expected, rtol=0)


def test_images_that_are_not_square_are_turned_by_half(small_names: None) -> None:
    vit = student(dynamic_img_size=True)
    losses = Anchor(vit, turns=8)({'image': torch.randn(4, 3, 32, 16)}, 0)
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_an_oriented_archive_is_seen_as_it_is(small_names: None) -> None:
    vit = student()
    image = torch.randn(4, 3, 32, 32)
    anchor = Anchor(vit, oriented=True, whitening=0)
    losses = anchor({'image': image}, 0)  # the student is its own target before the first step
    assert all(abs(loss.item()) < 1e-5 for loss in losses.values())
    assert_close(anchor.anchor.targets(image), Anchor(student(), turns=1).anchor.targets(image))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'turns': 3}, 'turns must be 1, 4 .*got 3'),
        ({'whitening': 1.5}, 'whitening must be in'),
        ({'ridge': 0}, 'ridge positive'),
        ({'patch_weight': -1}, 'must not be negative, and at least one must be positive, got -1'),
        ({'patch_weight': 0, 'mean_weight': 0, 'centered_weight': 0}, 'at least one must be positive'),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str, small_names: None) -> None:
    with pytest.raises(ValueError, match=message):
        Anchor(student(), **arguments)


def test_the_anchor_stands_beside_and_the_mean_patch_can_be_compared(small_names: None) -> None:
    torch.manual_seed(0)
    vit = create_vit('vit_tiny_patch8_32', **DINOv2.backbone_options)
    explora(vit, ExPLoRAConfig.parse('[L]-r4'))
    objective = DINOv2(vit, head=HeadConfig(32, 16, 8), losses=LossConfig(token='avg'), anchor=AnchorConfig())
    batch = {'image': torch.randn(4, 3, 32, 32)}
    losses = objective(batch, 0)
    assert {'loss_dino_global', 'loss_ibot', 'loss_patch', 'loss_centered', 'loss_mean'} <= losses.keys()
    torch.stack(list(losses.values())).sum().backward()
    features = vit(batch['image'])
    assert torch.equal(objective.pool(features), features.patches.flatten(1, 2).mean(1))
    # The source is kept once more in memory only where it trains.
    own = {id(p) for p in vit.parameters()}
    copied = sum(p.numel() for p in objective.anchor.parameters() if id(p) not in own)
    assert copied == sum(p.numel() for p in vit.parameters() if p.requires_grad)
    with pytest.raises(ValueError, match="token must be cls or avg, got 'mean'"):
        LossConfig(token='mean')


@pytest.mark.parametrize(
    ('options', 'image', 'batch'),
    [
        (
            {'tokenizer': 'group-channel', 'bands': ('B02', 'B03', 'B04', 'B08')}
            | {'tokenizer_options': {'channel_groups': [['B02', 'B03'], ['B04', 'B08']]}},
            (4, 4, 32, 32),
            {},
        ),
        (
            {'tokenizer': 'temporal'},
            (4, 3, 3, 32, 32),
            {'timestamps': torch.tensor([[[8.0, 5, 12], [15, 7, 12], [18, 7, 12]]] * 4)},
        ),
    ],
    ids=['bands', 'dates'],
)
def test_bands_and_dates_are_slots_of_the_same_anchor(
    options: dict[str, Any], image: tuple[int, ...], batch: dict[str, Any], small_names: None
) -> None:
    vit = student('[L]-r4', **options)
    anchor = Anchor(vit)
    pixels = torch.randn(image)
    losses = anchor({'image': pixels, **batch}, 0)
    torch.stack(list(losses.values())).sum().backward()
    slots = anchor.anchor.targets(pixels, batch.get('timestamps')).shape[1]
    assert slots == (2 if 'bands' in options else 3)
    assert all(p.grad is not None for p in vit.blocks[-1].parameters())
