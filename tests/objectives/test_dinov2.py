"""DINOv2's self-distillation on an adapted backbone."""

import copy
import math
import random
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.models import ViT
from explora_geo.models.heads import HeadConfig
from explora_geo.objectives import DINOv2, LossConfig, MaskConfig, PhaseConfig, TeacherConfig, dinov2
from explora_geo.objectives.masking import block_masks
from explora_geo.objectives.teacher import Teacher
from explora_geo.transforms import ViewsConfig

Build = Callable[..., ViT]
HEAD = HeadConfig(prototypes=24, hidden_dim=16, bottleneck_dim=8)
STEADY = PhaseConfig(head_warmup_steps=0)
VIEWS = ViewsConfig(global_size=32, local_size=16, num_local=3)


@pytest.fixture
def build(build_vit: Build) -> Callable[..., DINOv2]:
    """Build a small objective on a ViT of 3 blocks and width 32, adapted as [L]-r4."""

    def make(adaptation: str = '[L]-r4', vit: dict[str, Any] | None = None, **kwargs: Any) -> DINOv2:
        backbone = build_vit(mask_token=True, dynamic_img_size=True, **(vit or {}))
        explora(backbone, ExPLoRAConfig.parse(adaptation))
        return DINOv2(backbone, **{'head': HEAD, 'views': VIEWS, 'phases': STEADY, **kwargs})

    return make


def train(model: DINOv2, images: Tensor, steps: int, lr: float = 1e-3) -> list[float]:
    """Train as the task does and return the sums of the losses."""
    model.set_schedule(steps, steps)
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
    model = build(teacher=TeacherConfig(momentum=1.0, centering=centering), losses=LossConfig(koleo_weight=0))
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
    views, losses = ViewsConfig(global_size=32, num_local=0), LossConfig(koleo_weight=0)
    model = build(views=views, masks=MaskConfig(probability=0), losses=losses)
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


@pytest.mark.parametrize('train_gain', [False, True])
def test_first_the_heads_train_alone_and_the_prototypes_rest(
    build: Callable[..., DINOv2], images: Tensor, train_gain: bool
) -> None:
    phases = PhaseConfig(head_warmup_steps=4, freeze_last_layer_steps=2)
    model = build(head=replace(HEAD, train_gain=train_gain), phases=phases)
    start = snapshot(model.student)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.1)
    model.set_schedule(8, 8)
    changed = []
    for step in range(8):
        optimizer.zero_grad()
        torch.stack(list(model({'image': images}, step).values())).sum().backward()
        model.before_step(step)
        optimizer.step()
        model.after_step(step + 1)
        changed.append({n for n, v in snapshot(model.student).items() if not torch.equal(v, start[n])})
    mlp = {f'dino_head.mlp.{i}.{kind}' for i in (0, 2, 4) for kind in ('weight', 'bias')}
    assert changed[0] == changed[1] == mlp
    gain = {'dino_head.last_layer.weight_g'} if train_gain else set()
    assert changed[2] == changed[3] == mlp | {'dino_head.last_layer.weight_v'} | gain
    assert changed[-1] == {n for n, p in model.student.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ('phase', 'misses'),
    [('freeze_last_layer', 'the prototypes never train'), ('head_warmup', 'the backbone never trains')],
)
def test_a_phase_that_outlasts_the_run_is_told_of(
    build: Callable[..., DINOv2], phase: str, misses: str
) -> None:
    rest = {'freeze_last_layer_steps': 0, 'head_warmup_steps': 0, f'{phase}_steps': 1250}
    teacher = TeacherConfig(temperature_warmup_steps=0)
    with pytest.warns(
        UserWarning, match=f'{phase}_steps 1250 lasts 1,250 steps and the run has 300: {misses}'
    ) as said:
        build(phases=PhaseConfig(**rest), teacher=teacher).set_schedule(300, 50)
    assert len(said) == 1


def test_old_lengths_work_and_name_the_new_keys(build: Callable[..., DINOv2]) -> None:
    with pytest.warns(FutureWarning) as said:
        model = build(phases=None, freeze_last_layer=3, head_warmup=0.2)
    assert model.phases == PhaseConfig(freeze_last_layer_epochs=3, head_warmup_fraction=0.2)
    new = ('phases.freeze_last_layer_epochs: 3', 'phases.head_warmup_fraction: 0.2')
    assert [str(w.message) for w in said] == [
        f'freeze_last_layer: 3 is deprecated, use {new[0]} (or phases.freeze_last_layer_steps)',
        f'head_warmup: 0.2 is deprecated, use {new[1]} (or phases.head_warmup_steps)',
    ]
    with pytest.warns(FutureWarning, match='load_heads: False is deprecated, use head.load: False'):
        assert not build(load_heads=False).load_heads
    with pytest.raises(TypeError, match="unexpected keyword argument 'ibot'"):
        build(ibot=1)
    with pytest.warns(FutureWarning, match='use temperature_warmup_epochs: 30'):
        assert TeacherConfig(temperature_warmup=30) == TeacherConfig(temperature_warmup_epochs=30)


def test_the_student_alone_drops_paths(build: Callable[..., DINOv2], images: Tensor) -> None:
    model = build(vit={'drop_path_rate': 0.5, 'uniform_drop_path': True}).train()
    views = model._multi_crop(images)
    rows = torch.arange(5)
    targets = [
        model._teacher_targets(views[0], model.backbone.patch_embed(views[0]), rows, None, 0)
        for _ in range(2)
    ]
    model.assign_cls.eval()
    again = [
        model._teacher_targets(views[0], model.backbone.patch_embed(views[0]), rows, None, 0)
        for _ in range(2)
    ]
    assert torch.equal(again[0][0], again[1][0]) and targets[0][1] is not None
    features = [model.backbone(views[0]).cls for _ in range(2)]
    assert not torch.equal(features[0], features[1])


def test_crops_are_embedded_once_while_the_embedding_is_frozen(
    build: Callable[..., DINOv2], images: Tensor
) -> None:
    for adaptation, expected in (('[L]-r4', [16, 24]), ('full', [16, 16, 24])):
        model = build(adaptation)
        seen: list[int] = []
        for vit in (model.backbone, model.final_backbone):
            vit.patch_embed.register_forward_hook(lambda m, args, out, seen=seen: seen.append(len(args[0])))
        model({'image': images}, 0)
        assert seen == expected


def test_targets_of_masked_tokens_are_gone_before_local_crops_need_memory(
    build: Callable[..., DINOv2], images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build()
    teach, targets, alive = model._teacher_targets, [], []

    def watched(*args: Any) -> Any:
        found = teach(*args)
        assert found[1] is not None
        targets.append(weakref.ref(found[1]))
        return found

    monkeypatch.setattr(model, '_teacher_targets', watched)
    model.backbone.register_forward_pre_hook(lambda m, args: alive.append(targets[0]() is not None))
    losses = model({'image': images}, 0)
    assert alive == [True, False]  # global crops, local crops
    torch.stack(list(losses.values())).sum().backward()
    assert model.dino_head.last_layer.weight_v.grad is not None


def test_a_separate_head_of_masked_tokens(build: Callable[..., DINOv2], images: Tensor) -> None:
    model = build(ibot_head=HeadConfig(prototypes=10, hidden_dim=16, bottleneck_dim=8))
    assert model.assign_patches.center.value.shape == (1, 10)
    train(model, images, 4)
    assert 'ibot_head' in model.teacher.parts and model.assign_patches.center.value.any()
    assert {k.split('.')[0] for k in model.extra_state()} == {'dino_head', 'ibot_head'}


def test_heads_are_taken_unless_told_otherwise(build: Callable[..., DINOv2]) -> None:
    heads = build().extra_state()
    for load_heads in (True, False):
        model = build(head=replace(HEAD, load=load_heads))
        assert model.load_pretrained(heads).startswith('dino_head loaded') == load_heads
        weight = model.teacher.parts['dino_head'].mlp[0].weight
        assert torch.equal(weight, heads['dino_head.mlp.0.weight']) == load_heads


def test_heads_of_another_size_are_not_taken(build: Callable[..., DINOv2]) -> None:
    other = build(head=HeadConfig(prototypes=10, hidden_dim=16, bottleneck_dim=8)).extra_state()
    for state in (other, {}):
        assert build().load_pretrained(state) == 'the heads start random and train in full'


def test_losses_in_bfloat16_are_near_those_in_float32(
    build: Callable[..., DINOv2], images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build().eval()
    views, mask = model._multi_crop(images), block_masks(16, (4, 4))
    monkeypatch.setattr(dinov2, 'block_masks', lambda *args, **kwargs: mask)
    exact = model({'image': images, 'views': views}, 0)
    with torch.autocast('cpu', torch.bfloat16):
        rough = model({'image': images, 'views': views}, 0)
    for name, value in exact.items():
        assert rough[name].dtype == torch.float32
        torch.testing.assert_close(rough[name], value, atol=0.1, rtol=0.05)


@pytest.mark.parametrize(
    ('steps', 'momentum'), [(1, 0.9), (100, 0.9), (400, 0.95), (1000, 0.98), (2500, 0.992), (100_000, 0.992)]
)
def test_the_teacher_of_a_short_run_follows_faster(steps: int, momentum: float) -> None:
    assert TeacherConfig().momentum_of(steps) == pytest.approx(momentum)
    assert TeacherConfig(momentum=0.5).momentum_of(steps) == 0.5


@pytest.mark.parametrize(
    ('config', 'fields', 'sentence'),
    [
        (TeacherConfig, {'momentum': 1.1}, r'momentum must be in \[0, 1\]'),
        (TeacherConfig, {'temperature': 0.1}, 'at most final_temperature, got 0.1 and 0.07'),
        (MaskConfig, {'ratio': (0.5, 0.1)}, 'mask ratio must be'),
        (MaskConfig, {'probability': 2}, 'mask probability in'),
    ],
)
def test_values_out_of_range_are_refused(config: Any, fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        config(**fields)


def naive_step(
    student: nn.ModuleDict, teacher: nn.ModuleDict, views: list[Tensor], mask: Tensor, state: dict[str, Any]
) -> Tensor:
    """DINOv2's loss, written out crop by crop and row by row, with a whole teacher; updates the centres."""
    globals_, locals_ = views[0].chunk(2), views[1].chunk(3)
    masks = mask.chunk(2)
    temperature, size = state['temperature'], len(globals_[0])
    logits, patch_targets, cls_logits = [], [], []
    with torch.no_grad():
        for crop, hidden in zip(globals_, masks, strict=True):
            out = teacher['backbone'](crop)
            cls_logits.append(teacher['dino_head'](out.cls))
            patch_targets.append(teacher['dino_head'](out.patches)[hidden])
        targets = [((x - state['center']) / temperature).softmax(-1) for x in cls_logits]
        hidden_logits = torch.cat(patch_targets)
        hidden_targets = ((hidden_logits - state['patch_center']) / temperature).softmax(-1)
        state['center'] = 0.9 * state['center'] + 0.1 * torch.cat(cls_logits).mean(0)
        state['patch_center'] = 0.9 * state['patch_center'] + 0.1 * hidden_logits.mean(0)
    outs = [student['backbone'](c, token_mask=m) for c, m in zip(globals_, masks, strict=True)]
    logits = [student['dino_head'](out.cls) for out in outs]
    logits += [student['dino_head'](student['backbone'](crop).cls) for crop in locals_]
    pairs = [(t, s) for t in range(2) for s in range(5) if s != t]
    loss = torch.zeros(())
    for t, s in pairs:
        loss = loss - (targets[t] * (logits[s] / 0.1).log_softmax(-1)).sum(-1).mean() / len(pairs)
    row = 0
    for out, hidden in zip(outs, masks, strict=True):
        for image in range(size):
            count = int(hidden[image].sum())
            for token in hidden[image].flatten().nonzero().flatten():
                guess = student['dino_head'](out.patches[image].flatten(0, 1)[token]) / 0.1
                loss = loss - (hidden_targets[row] * guess.log_softmax(-1)).sum() / count / (2 * size)
                row += 1
    for out in outs:
        x = nn.functional.normalize(out.cls, dim=-1)
        distances = torch.cdist(x, x) + 10 * torch.eye(size)
        nearest = x[distances.argmin(1)]
        loss = loss - 0.1 * ((x - nearest + 1e-8).norm(dim=-1) + 1e-8).log().mean()
    return loss


@pytest.mark.parametrize('adaptation', ['[L]-r4', '[1,L]', 'full'])
def test_two_steps_equal_those_written_out_with_a_whole_copied_teacher(
    build: Callable[..., DINOv2], images: Tensor, adaptation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(
        adaptation,
        teacher=TeacherConfig(momentum=0.992, temperature_warmup_fraction=0.5),
        phases=PhaseConfig(freeze_last_layer_steps=0, head_warmup_steps=0),
    )
    with torch.no_grad():  # gradients of a small head at its start are too large to compare
        for parameter in model.dino_head.mlp.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    model.teacher = Teacher(model.student)
    student = copy.deepcopy(model.student)
    teacher = copy.deepcopy(student).requires_grad_(False)
    steps = 4  # of which two are done
    model.set_schedule(steps, steps)
    optimizers = [
        torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
        for m in (model, student)
    ]
    state: dict[str, Any] = {'center': torch.zeros(24), 'patch_center': torch.zeros(24)}
    for step, temperature, momentum in ((0, 0.04, 0.992), (1, 0.055, 0.994)):
        views, mask = model._multi_crop(images), block_masks(16, (4, 4), ratio=(0.3, 0.5))
        monkeypatch.setattr(dinov2, 'block_masks', lambda *args, mask=mask, **kwargs: mask)
        state['temperature'] = temperature
        losses = (
            torch.stack(list(model({'image': images, 'views': views}, step).values())).sum(),
            naive_step(student, teacher, views, mask, state),
        )
        torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=0)
        for optimizer, loss in zip(optimizers, losses, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.after_step(step + 1)
        with torch.no_grad():
            for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
                mine.copy_(momentum * mine + (1 - momentum) * theirs)
    for ours, naive in ((model.student, student), (model.teacher.parts, teacher)):
        expected = dict(naive.named_parameters())
        for name, value in ours.named_parameters():
            torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=0, msg=name)
    torch.testing.assert_close(model.assign_cls.center.value[0], state['center'], atol=1e-5, rtol=0)
    torch.testing.assert_close(model.assign_patches.center.value[0], state['patch_center'], atol=1e-5, rtol=0)
    moved = (model.backbone.blocks[-1].mlp.fc1.weight - teacher['backbone'].blocks[-1].mlp.fc1.weight).abs()
    assert moved.max() > 1e-3


def test_frozen_first_blocks_run_once_for_both(build: Callable[..., DINOv2], images: Tensor) -> None:
    model = build('[L]-r4@2', masks=MaskConfig(probability=0.5)).train()
    assert model._shared_blocks == 1
    seen: list[int] = []
    for vit in (model.backbone, model.final_backbone):
        vit.blocks[0].register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    found = []
    for shared in (1, 0):
        copied = copy.deepcopy(model)
        copied._shared_blocks = shared
        torch.manual_seed(1)
        random.seed(1)
        losses = copied({'image': images}, 0)
        torch.stack(list(losses.values())).sum().backward()
        found.append((losses, [p.grad for p in copied.backbone.parameters() if p.grad is not None]))
    assert seen == [16, 8, 24, 16, 16, 24]
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)
