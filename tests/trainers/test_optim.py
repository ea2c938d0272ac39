"""The optimizer holds exactly what trains, and the schedule warms up and decays."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.models import ViT
from explora_geo.objectives import MAE, DINOv2
from explora_geo.objectives.schedules import TrainingLength
from explora_geo.trainers import OptimConfig
from explora_geo.trainers.optim import build_optimizer, build_schedule, optimization, training_length

Build = Callable[..., ViT]
QUIET: dict[str, Any] = {
    **{'accelerator': 'cpu', 'limit_val_batches': 0},
    **{'logger': False, 'enable_checkpointing': False, 'enable_progress_bar': False},
}


@pytest.mark.parametrize('notation', ['[L]-r4', '[1,L]', '[]-r8', 'full'])
def test_the_optimizer_holds_exactly_what_trains(build_vit: Build, notation: str) -> None:
    vit = explora(build_vit(), ExPLoRAConfig.parse(notation))
    optimizer = build_optimizer(vit, OptimConfig(), batch=256)
    held = [id(p) for group in optimizer.param_groups for p in group['params']]
    assert sorted(held) == sorted(id(p) for p in vit.parameters() if p.requires_grad)
    assert len(held) == len(set(held))


def test_only_unfrozen_matrices_decay(build_vit: Build) -> None:
    config = ExPLoRAConfig.parse('[L]-r4', extra=('patch_embed', 'pos_embed'))
    vit = explora(build_vit(), config)
    optimizer = build_optimizer(vit, OptimConfig(weight_decay=0.1), batch=256)
    names = {id(p): n for n, p in vit.named_parameters()}
    decay = {
        names[id(p)]
        for group in optimizer.param_groups
        for p in group['params']
        if group['weight_decay'] == 0.1
    }
    matrices = {f'blocks.2.{n}.weight' for n in ('attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2')}
    assert decay == matrices | {'patch_embed.proj.weight'}
    assert {g['weight_decay'] for g in optimizer.param_groups} == {0.0, 0.1}


def test_adapters_may_have_a_learning_rate_of_their_own(build_vit: Build) -> None:
    vit = explora(build_vit(), ExPLoRAConfig.parse('[L]-r4'))
    config = OptimConfig(base_lr=1e-3, lr_scaling='none', adapter_lr_multiplier=5)
    rates = {g['name']: g['lr'] for g in build_optimizer(vit, config, 8).param_groups}
    assert rates == pytest.approx({'decay': 1e-3, 'no_decay': 1e-3, 'lora': 5e-3})


def rate_of(model: nn.Module, config: OptimConfig) -> dict[str, float]:
    names = {id(p): n for n, p in model.named_parameters()}
    groups = build_optimizer(model, config, 8).param_groups
    return {names[id(p)]: g['lr'] for g in groups for p in g['params']}


@pytest.mark.parametrize('within', ['alone', 'objective'])
def test_rates_decay_from_block_to_block_towards_the_input(build_vit: Build, within: str) -> None:
    vit = build_vit(mask_token=True, dynamic_img_size=True)
    prefix, model = ('', vit) if within == 'alone' else ('backbone.', DINOv2(vit))
    config = OptimConfig(1.0, 'none', layer_decay=0.5, patch_embed_lr_multiplier=0.2)
    found = rate_of(model, config)
    expected = {
        'patch_embed.proj.weight': 0.5**4 * 0.2,
        'pos_embed': 0.5**4,
        'cls_token': 0.5**4,
        'mask_token': 0.5**4,
        'blocks.0.attn.qkv.weight': 0.5**3,
        'blocks.0.norm1.bias': 0.5**3,
        'blocks.2.mlp.fc2.weight': 0.5,
        'norm.weight': 1,
    }
    assert {k: found[prefix + k] for k in expected} == pytest.approx(expected)
    if within == 'objective':
        assert found['dino_head.mlp.0.weight'] == found['dino_head.last_layer.weight_v'] == 1


def test_frozen_blocks_count_as_layers_and_adapters_decay_too(build_vit: Build) -> None:
    vit = explora(build_vit(), ExPLoRAConfig.parse('[L]-r4'))
    found = rate_of(vit, OptimConfig(1.0, 'none', adapter_lr_multiplier=3, layer_decay=0.5))
    assert found['blocks.0.attn.qkv.lora_a.q'] == pytest.approx(3 * 0.5**3)
    assert found['blocks.2.attn.qkv.weight'] == pytest.approx(0.5)


def test_the_decoder_of_an_autoencoder_keeps_the_full_rate(build_vit: Build) -> None:
    mae = MAE(build_vit(), decoder_embed_dim=16, decoder_depth=2, decoder_num_heads=2)
    found = rate_of(mae, OptimConfig(1.0, 'none', layer_decay=0.5))
    assert {v for k, v in found.items() if k.startswith('decoder.')} == {1}
    assert found['backbone.blocks.0.attn.qkv.weight'] == pytest.approx(0.5**3)


def test_the_schedule_scales_every_group_alike(build_vit: Build) -> None:
    config = OptimConfig(1.0, 'none', warmup_fraction=0.1, layer_decay=0.5)
    optimizer = build_optimizer(build_vit(), config, 8)
    schedule = build_schedule(optimizer, config, TrainingLength(100, 100, 8))
    start = [g['initial_lr'] for g in optimizer.param_groups]
    for _ in range(40):
        optimizer.step()
        schedule.step()
    ratios = [g['lr'] / s for g, s in zip(optimizer.param_groups, start, strict=True)]
    assert len(set(start)) == 5 and ratios == pytest.approx([ratios[0]] * len(ratios))


def test_betas_reach_adamw(build_vit: Build) -> None:
    optimizer = build_optimizer(build_vit(), OptimConfig(betas=(0.8, 0.88)), 8)
    assert {g['betas'] for g in optimizer.param_groups} == {(0.8, 0.88)}


@pytest.mark.parametrize(
    ('scaling', 'batch', 'expected'),
    [
        ('linear', 1024, 4e-3),
        ('linear', 64, 2.5e-4),
        ('sqrt', 1024, 1e-3),
        ('sqrt', 256, 5e-4),
        ('none', 7, 1e-3),
    ],
)
def test_the_learning_rate_scales_with_the_batch(scaling: str, batch: int, expected: float) -> None:
    config = OptimConfig(base_lr=1e-3, lr_scaling=scaling)
    assert config.scaled_lr(batch) == pytest.approx(expected)


@pytest.mark.parametrize(
    ('warmup', 'steps'),
    [
        ({'warmup_steps': 0}, 0),
        ({'warmup_steps': 7}, 7),
        ({'warmup_fraction': 0.1}, 10),
        ({}, 20),
        ({'warmup_epochs': 0.5}, 10),
        ({'warmup_epochs': 2}, 40),
        ({'warmup_epochs': 4}, 80),  # more than half of the run, as asked for
    ],
    ids=str,
)
def test_warm_up_lasts_as_long_as_its_unit_says(warmup: dict[str, float], steps: int) -> None:
    config = OptimConfig(base_lr=1.0, lr_scaling='none', **warmup)
    found = rates(config, total=100, epochs=5, batch=8)
    assert found[:steps] == pytest.approx([(i + 1) / steps for i in range(steps)])
    assert found[steps] == 1 and found[steps + 1] < 1


def test_a_warm_up_that_outlasts_the_run_is_told_of(recwarn: pytest.WarningsRecorder) -> None:
    found = rates(OptimConfig(base_lr=1.0, lr_scaling='none', warmup_steps=12_500), 100, 5, 8)
    assert found[-1] == pytest.approx(100 / 12_500)
    said = [str(w.message) for w in recwarn]
    assert said == [
        'warmup_steps 12500 lasts 12,500 steps and the run has 100: the learning rate rises '
        'until the end; use warmup_fraction for a share of the run'
    ]


@pytest.mark.parametrize(
    ('old', 'new'), [(0.1, 'warmup_fraction'), (0, 'warmup_fraction'), (1, 'warmup_epochs')], ids=str
)
def test_the_old_warm_up_works_and_names_the_new_key(old: float, new: str) -> None:
    with pytest.warns(FutureWarning, match=f'warmup: {old} is deprecated, use {new}: {old}'):
        assert OptimConfig(warmup=old) == OptimConfig(**{new: old})


def test_weight_decay_rises_as_a_cosine_where_matrices_decay() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    config = OptimConfig(1.0, 'none', weight_decay=0.04, final_weight_decay=0.4, warmup_steps=0)
    optimizer = build_optimizer(model, config, 8)
    schedule = build_schedule(optimizer, config, TrainingLength(101, 101, 8))
    found: list[dict[str, float]] = []
    for step in range(101):
        if step == 60:  # resumed
            state, optimizer = schedule.state_dict(), build_optimizer(model, config, 8)
            schedule = build_schedule(optimizer, config, TrainingLength(101, 101, 8))
            schedule.load_state_dict(state)
            optimizer.step()
            schedule.step()
        else:
            optimizer.step()
            schedule.step()
        found.append({g['name']: g['weight_decay'] for g in optimizer.param_groups})
    assert {row['no_decay'] for row in found} == {0.0}
    decays = [0.04, *(row['decay'] for row in found)]
    expected = [0.4 + (0.04 - 0.4) * (1 + math.cos(math.pi * i / 100)) / 2 for i in range(101)]
    assert decays[:101] == pytest.approx(expected)


def rates(config: OptimConfig, total: int, epochs: int, batch: int) -> list[float]:
    optimizer = build_optimizer(nn.Linear(2, 2), config, batch)
    schedule = build_schedule(optimizer, config, TrainingLength(total, total / epochs, batch))
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        schedule.step()
    return found


def test_the_schedule_rises_linearly_and_falls_as_a_cosine() -> None:
    config = OptimConfig(base_lr=0.1, lr_scaling='none', warmup_epochs=1, min_lr=0.01)
    found = rates(config, total=100, epochs=10, batch=8)
    assert max(found) == pytest.approx(0.1)
    assert found[:10] == pytest.approx([0.01 * (i + 1) for i in range(10)])
    for step in (10, 30, 55, 99):
        share = (step - 10) / 89
        cosine = 0.01 + 0.09 * (1 + math.cos(math.pi * share)) / 2
        assert found[step] == pytest.approx(cosine, abs=2e-3)
    assert found[10:] == sorted(found[10:], reverse=True)
    assert found[-1] == pytest.approx(0.01, abs=1e-4)


def test_the_smallest_rate_is_not_scaled_by_the_batch() -> None:
    for batch in (64, 4096):
        config = OptimConfig(base_lr=1e-3, min_lr=1e-6, warmup_steps=0)
        assert rates(config, 50, 5, batch)[-1] == pytest.approx(1e-6, rel=0.05)


@pytest.mark.parametrize('total', [1, 2, 3])
def test_very_short_runs_have_a_schedule(total: int) -> None:
    found = rates(OptimConfig(base_lr=0.1, lr_scaling='none', warmup_epochs=1), total, 1, 8)
    assert all(0 <= lr <= 0.1 for lr in found) and found[0] > 0


@pytest.mark.parametrize(
    ('fields', 'sentence'),
    [
        ({'base_lr': 0}, 'base_lr must be positive, got 0'),
        ({'adapter_lr_multiplier': -1}, 'adapter_lr_multiplier must be positive'),
        ({'layer_decay': 0}, 'layer_decay must be positive, got 0'),
        ({'patch_embed_lr_multiplier': -1}, 'patch_embed_lr_multiplier must be positive'),
        ({'weight_decay': -0.1}, 'weight_decay must not be negative'),
        ({'warmup': -1}, 'warmup must not be negative'),
        ({'warmup_steps': -1}, 'warmup_steps must be finite and not negative, got -1'),
        (
            {'warmup_fraction': 2},
            r'warmup_fraction \(a share of the run\) must be at most 1, got 2: use warmup_steps',
        ),
        ({'warmup_steps': 9, 'warmup_epochs': 1}, 'warmup_steps and warmup_epochs set the same length'),
        ({'final_weight_decay': -1}, 'final_weight_decay must not be negative'),
        ({'lr_scaling': 'cubic'}, "lr_scaling must be linear, sqrt or none, got 'cubic'"),
    ],
)
def test_values_out_of_range_are_refused(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        OptimConfig(**fields)


def test_a_model_in_which_nothing_trains_is_refused(build_vit: Build) -> None:
    with pytest.raises(ValueError, match='nothing to train'):
        build_optimizer(build_vit().requires_grad_(False), OptimConfig(), 8)


@pytest.mark.parametrize(
    'length', [{'max_steps': 8}, {'max_steps': 8, 'max_epochs': 9}, {'max_epochs': 2}], ids=str
)
def test_the_length_is_the_same_however_it_is_given(length: dict[str, int], tmp_path: Path) -> None:
    found: list[TrainingLength] = []

    class Model(BoringModel):
        def configure_optimizers(self) -> Any:
            found.append(training_length(self.trainer))
            return super().configure_optimizers()

    Trainer(default_root_dir=tmp_path, limit_train_batches=4, **QUIET, **length).fit(Model())
    assert [(f.total, f.epoch) for f in found] == [(8, 4)]


@pytest.mark.parametrize('length', [{'max_time': '00:01:00:00'}, {'max_epochs': -1}], ids=str)
def test_a_run_without_a_length_is_refused_in_one_sentence(length: dict[str, Any], tmp_path: Path) -> None:
    class Model(BoringModel):
        def configure_optimizers(self) -> Any:
            return training_length(self.trainer)

    trainer = Trainer(accelerator='cpu', default_root_dir=tmp_path, logger=False, **length)
    with pytest.raises(ValueError, match=r'need the length of the run: set trainer\.max_steps'):
        trainer.fit(Model())


def test_warm_up_in_passes_over_a_stream_is_refused(tmp_path: Path) -> None:
    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            return iter(torch.zeros(9, 32))

    class Model(BoringModel):
        optim = OptimConfig()

        def configure_optimizers(self) -> Any:
            return optimization(self.trainer, self, self.optim, training_length(self.trainer))

    given: dict[str, Any] = {'default_root_dir': tmp_path, 'max_steps': 4, **QUIET}
    with pytest.raises(ValueError, match=r'warmup_epochs is 1, but epochs .* have no end: use warmup_steps'):
        Trainer(**given).fit(Model(), DataLoader(Stream()))
    model, trainer = Model(), Trainer(**given)
    model.optim = OptimConfig(warmup_steps=2)
    trainer.fit(model, DataLoader(Stream()))
    assert trainer.global_step == 4
