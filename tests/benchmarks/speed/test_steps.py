"""Training steps side by side: the same work for everybody, in turns, and tables of it."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from torch import nn

from benchmarks.speed import ours
from benchmarks.speed.engine import alternate, compare_steps
from benchmarks.speed.others import (
    CONTENDERS,
    SplitQKV,
    find,
    for_each,
    huggingface_mae,
    missing,
    peft_backbone,
)
from benchmarks.speed.setting import Setting, read_images
from explora_geo.adaptation import trainable_summary
from explora_geo.models.heads import HeadConfig
from explora_geo.objectives import MAE

TILES = Path(__file__).parents[2] / 'data' / 'eurosat_rgb' / 'test'
SETTING = Setting(
    model='vit_tiny_patch16_224',
    batch=2,
    image_size=112,
    local_size=32,
    num_local=2,
    decoder_depth=1,
    head=HeadConfig(64, 32, 16),
    precision='fp32',
    images=TILES,
    device='cpu',
)


def _in_precision_of(name: str) -> Setting:
    return replace(SETTING, precision='bf16') if 'bf16' in name else SETTING


def test_steps_are_taken_in_turns_and_the_median_counts() -> None:
    now, order = [0.0], []

    def step(name: str, seconds: list[float]) -> None:
        order.append(name)
        now[0] += seconds.pop(0)

    a, b = [9.0, 1.0, 5.0, 2.0], [9.0, 4.0, 4.0, 7.0]
    times = alternate({'a': lambda: step('a', a), 'b': lambda: step('b', b)}, 3, clock=lambda: now[0])
    rounds = [tuple(order[i : i + 2]) for i in range(0, 8, 2)]
    assert set(rounds) == {('a', 'b'), ('b', 'a')}  # whatever comes before, it is not always the same
    assert times == {'a': [1.0, 2.0, 5.0], 'b': [4.0, 4.0, 7.0]}
    with pytest.raises(ValueError, match='repeats must be at least 1'):
        alternate({}, 0)


def test_images_are_real_and_of_all_classes() -> None:
    images = read_images(TILES, 10, 48)
    assert images.shape == (10, 3, 48, 48)
    assert len({tuple(image.mean((1, 2)).tolist()) for image in images}) == 10
    assert images.std() > 0.3
    with pytest.raises(FileNotFoundError, match='has 1000 images'):
        read_images(TILES, 2000, 48)


def _contenders() -> Iterator[Any]:
    """Ours and the first of the others for every change; all of them are minutes."""
    for objective, steps in CONTENDERS.items():
        found = [name for name in steps if not missing(name) and 'TorchGeo' not in name]
        others = [name for name in found if not name.startswith('explora_geo')]
        for name in found:
            marks = () if name in (found[0], others[0]) else pytest.mark.group(name='long')
            yield pytest.param(objective, name, marks=marks)


@pytest.mark.parametrize(('objective', 'name'), _contenders())
def test_every_contender_learns_from_the_same_images(objective: str, name: str) -> None:
    torch.manual_seed(0)
    step = CONTENDERS[objective][name](_in_precision_of(name))
    for group in step.optimizer.param_groups:
        group['lr'] = 1e-3
    before = [p.detach().clone() for p in step.module.parameters()]
    losses = []
    for _ in range(4):
        torch.manual_seed(1)  # the same masks
        losses.append(step())
    assert losses[-1] < losses[0]
    moved = sum(
        p.numel()
        for p, q in zip(step.module.parameters(), before, strict=True)
        if p.requires_grad and not torch.equal(p, q)
    )
    assert 0 < moved <= step.trained
    full = 'all weights' in name
    assert (step.trained > 3e6) == full


@pytest.mark.group(name='long')
@pytest.mark.parametrize('objective', ['mae', 'dinov2'])
def test_checkpointing_and_compiling_change_nothing_but_the_time(
    objective: str, small_names: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend='eager'))
    found = find(objective, compiled=True)
    plain, checkpointed, compiled = (
        next(n for n in found if n.startswith('explora_geo') and n.endswith(end))
        for end in ('r32', 'gradient checkpointing', 'r32, compiled')
    )
    losses, ran = {}, []
    for name in (plain, checkpointed, compiled):
        torch.manual_seed(0)
        step = found[name](SETTING)
        vit: Any = step.module.backbone
        assert vit.grad_checkpointing == (name == checkpointed)
        assert all((b._compiled_call_impl is not None) == (name == compiled) for b in vit.blocks)
        ran.append(step.trained)
        seed_everything(1, verbose=False)  # the same masks
        losses[name] = [step(), step()]
    assert len(set(ran)) == 1
    assert losses[checkpointed] == pytest.approx(losses[plain]) == losses[compiled]


@pytest.mark.parametrize('objective', ['mae', 'dinov2'])
def test_frozen_matrices_in_bfloat16_change_nothing_but_the_memory(objective: str, small_names: None) -> None:
    found = find(objective, compiled=False)
    lean = next(n for n in found if n.endswith('frozen in bf16'))
    losses = []
    for name in (lean.removesuffix(', frozen in bf16'), lean):
        torch.manual_seed(0)
        step = found[name](replace(SETTING, precision='bf16'))
        kinds = {b.mlp.fc1.weight.dtype for b in step.module.backbone.blocks[:-1]}
        assert kinds == {torch.bfloat16 if name == lean else torch.float32}
        seed_everything(1, verbose=False)
        losses.append([step(), step()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    with pytest.raises(ValueError, match='go with products in bfloat16'):
        found[lean](SETTING)


@pytest.mark.slow
def test_some_are_measured_beside_the_first(tmp_path: Path, small_names: None) -> None:
    compare_steps(tmp_path, 'mae', SETTING, repeats=1)
    compare_steps(tmp_path, 'mae', SETTING, repeats=1, only='checkpointing')
    lines = (tmp_path / 'speed' / 'speed.jsonl').read_text().splitlines()
    everybody, some = map(json.loads, lines)
    timed = [list(row['columns']['seconds']) for row in (everybody, some)]
    assert timed[1] == list(ours.STEPS['mae'])[:2] and len(timed[0]) > 3
    # Training everything needs at most half as many products again: three for each instead of two.
    flops = everybody['columns']['GFLOP']
    assert 1 < flops['explora_geo, all weights'] / flops[next(iter(ours.STEPS['mae']))] < 1.5


def test_peft_by_hand_trains_what_the_adaptation_trains() -> None:
    adapted = ours.backbone(SETTING, MAE, '[L]-r32')
    by_hand = sum(p.numel() for p in peft_backbone(SETTING, MAE).parameters() if p.requires_grad)
    assert by_hand == sum(trainable_summary(adapted).values())


def test_hugging_faces_model_with_peft_trains_as_many_of_its_encoder() -> None:
    names = [n for n, p in huggingface_mae(SETTING, True).module.named_parameters() if p.requires_grad]
    lora = [n for n in names if 'lora_' in n]
    assert len(lora) == 11 * 2 * 2 and all('q_proj' in n or 'v_proj' in n for n in lora)
    assert not any('.layers.11.' in n or 'decoder' in n for n in lora)
    assert len([n for n in names if '.layers.11.' in n]) == 16


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    assert missing('Hugging Face ViTMAE + PEFT') == 'transformers'
    assert not missing('lightly DINOv2, all weights, copied teacher')


def test_split_layers_compute_what_the_fused_one_does() -> None:
    qkv, x = nn.Linear(8, 24), torch.randn(3, 8)
    torch.testing.assert_close(SplitQKV(qkv)(x), qkv(x))


def test_a_regular_expression_chooses_and_what_does_not_import_is_named() -> None:
    def work(name: str) -> str:
        if name == 'c':
            raise ImportError('c needs another version of d')
        return name.upper()

    found, absent = for_each(['a', 'b+', 'c', 'd, all'], work, r'b\+|^c|all$')
    assert found == {'a': 'A', 'b+': 'B+', 'd, all': 'D, ALL'}
    assert absent == {'c': 'c needs another version of d'}


def test_the_table_names_ratios_and_who_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(setting: Setting) -> None:
        raise ValueError('it cannot')

    chosen = {**ours.STEPS['mae'], 'stranger': refuse}
    monkeypatch.setitem(CONTENDERS, 'mae', chosen)  # type: ignore[arg-type]
    for _ in range(2):
        report = compare_steps(tmp_path, 'mae', SETTING, repeats=1).read_text()
    # Measured anew, not twice
    (line,) = (tmp_path / 'speed' / 'speed.jsonl').read_text().splitlines()
    row = json.loads(line)
    seconds = row['columns']['seconds']
    ours_s, full = (seconds[n] for n in (next(iter(ours.STEPS['mae'])), 'explora_geo, all weights'))
    assert f'| {full / ours_s:.3g} |' in report and '| stranger | it cannot |' in report
    with pytest.raises(ValueError, match='objective must be one of mae, dinov2'):
        compare_steps(tmp_path, 'simclr', SETTING)
    with pytest.raises(ValueError, match='precision must be'):
        Setting(precision='fp8')  # type: ignore[arg-type]
