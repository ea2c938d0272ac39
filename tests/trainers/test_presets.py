"""Presets hold the published numbers (workshop text, appendix D, and released scripts)."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from explora_geo.adaptation import ExPLoRAConfig, explora, trainable_summary
from explora_geo.configured import run
from explora_geo.models import create_vit
from explora_geo.models.heads import HeadConfig
from explora_geo.models.weights import ViTLarge14_Weights, ViTLarge16_Weights, ViTTiny8_Weights
from explora_geo.objectives import MAE, AnchorConfig, DINOv2, LossConfig, Objective, TeacherConfig
from explora_geo.objectives.schedules import TrainingLength
from explora_geo.trainers import PRESETS, ExPLoRATask
from explora_geo.trainers.presets import Preset, choose, get_preset

Task = Callable[..., ExPLoRATask]


def lengths(preset: Preset) -> tuple[int, ...]:
    """Steps of warm-up, of the teacher's temperature, and in which prototypes and backbone rest."""
    # An epoch of any length: nothing here is counted in passes over the data.
    horizon = TrainingLength(preset.steps or 1, 11_361)
    phases = preset.objective['phases']
    found = (preset.optim.warmup_length, preset.objective['teacher'].warmup_length)
    return tuple(horizon.steps(x) for x in (*found, phases.freeze_last_layer, phases.head_warmup))


def test_there_are_recipes_for_two_kinds_of_weights_and_for_two_kinds_of_slots() -> None:
    assert {k: set(v) for k, v in PRESETS.items()} == {
        'paper-workshop': {'M', 'D'},
        'paper-released': {'M', 'D'},
        'paper-sentinel': {'M'},
        'paper-temporal': {'M'},
    }


def test_workshop_dinov2() -> None:
    preset = get_preset('paper-workshop', 'D')
    assert (preset.batch, preset.steps, preset.epochs) == (32, 200_000, None)
    assert (preset.optim.base_lr, preset.optim.weight_decay) == (5e-3, 0)
    assert preset.adaptation.notation('D') == 'D-ExPLoRA-[L]-r32'
    assert lengths(preset) == (12_500, 37_500, 1_250, 0)


def test_workshop_mae() -> None:
    preset = get_preset('paper-workshop', 'M')
    assert (preset.batch, preset.steps, preset.epochs) == (1024, None, 200)
    assert (preset.optim.base_lr, preset.optim.weight_decay) == (1.5e-4, 0)
    assert preset.optim.warmup_length == ('warmup_epochs', 1)
    # "Q, V matrices of each attention layer in all other blocks (including all blocks of the decoder)"
    assert preset.objective['decoder_adaptation'] == ExPLoRAConfig((), 32)


def test_released_dinov2() -> None:
    preset = get_preset('paper-released', 'D')
    assert (preset.batch, preset.optim.base_lr, preset.steps) == (1024, 1e-3, 150_000)
    # U=[23] counted from 0 is the last of ViT-L's 24 blocks.
    assert preset.adaptation == ExPLoRAConfig((-1,), 64, alpha=1, mlp_rank_ratio=0.25)
    assert lengths(preset) == (10_000, 30_000, 3_000, 0)


def test_a_recipe_over_fewer_steps_keeps_the_shares_of_its_phases() -> None:
    shorter = get_preset('paper-released', 'D').over(6_250)
    assert shorter.steps == 6_250 and lengths(shorter) == (417, 1_250, 125, 0)
    mae = get_preset('paper-released', 'M')
    assert replace(mae.over(500), steps=None) == mae


def test_released_mae() -> None:
    preset = get_preset('paper-released', 'M')
    assert (preset.batch, preset.epochs, preset.optim.base_lr) == (1024, 400, 4.5e-4)
    assert preset.optim.betas == (0.9, 0.95)
    assert (preset.adaptation.rank, preset.adaptation.alpha) == (64, 1)
    assert (preset.objective['mask_ratio'], preset.objective['norm_pix_loss']) == (0.75, True)
    decoder = preset.objective['decoder_adaptation']
    assert decoder == ExPLoRAConfig((), 8, alpha=1, mlp_rank_ratio=0.25)


def test_the_released_decoder_trains_lora_and_norms_alone() -> None:
    with torch.device('meta'):
        vit = create_vit('vit_large_patch16_224')
        decoder = MAE(vit).decoder
    explora(decoder, get_preset('paper-released', 'M').objective['decoder_adaptation'])
    # A and B of q and v: 4 D r in 8 blocks; norms: 4 D a block and 2 D after them.
    assert trainable_summary(decoder) == {'LoRA': 8 * 4 * 512 * 8, 'norms': 8 * 4 * 512 + 2 * 512}


def test_released_lora_on_mlp_matrices_has_a_quarter_of_the_rank() -> None:
    released = get_preset('paper-released', 'M').adaptation
    with torch.device('meta'):
        vit = create_vit('vit_large_patch16_224')
    explora(vit, replace(released, targets=('q', 'v', 'fc1', 'fc2')))
    # q and v: 4 D r; fc1 and fc2 join widths D and 4 D: 10 D r / 4 together; in 23 blocks.
    assert trainable_summary(vit)['LoRA'] == 23 * (4 * 1024 * 64 + 10 * 1024 * 16)
    with torch.device('meta'):
        plain = explora(create_vit('vit_large_patch16_224'), released)
    assert sum(trainable_summary(plain).values()) == 18_722_816  # without LayerScale


@pytest.mark.parametrize(
    ('name', 'notation'), [('paper-sentinel', 'M-ExPLoRA-[1,L]-r32'), ('paper-temporal', 'M-ExPLoRA-[L]-r32')]
)
def test_sentinel_and_temporal(name: str, notation: str) -> None:
    preset = get_preset(name, 'M')
    assert preset.adaptation.notation('M') == notation
    assert (preset.batch, preset.epochs, preset.optim.base_lr) == (1024, 50, 4.5e-4)
    assert preset.objective['decoder_adaptation'].notation() == '[]-r32'


@pytest.mark.parametrize('name', ['paper-workshop', 'paper-released'])
def test_dinov2s_defaults_fill_what_the_paper_leaves_open(name: str) -> None:
    preset = get_preset(name, 'D')
    assert preset.objective['head'] == HeadConfig(65536, 2048, 256, 3, train_gain=True)
    teacher = preset.objective['teacher']
    assert (teacher.momentum, teacher.temperature, teacher.final_temperature) == (0.992, 0.04, 0.07)
    assert teacher.center_momentum == 0.9
    assert preset.optim.lr_scaling == 'sqrt' and preset.optim.betas == (0.9, 0.999)
    assert preset.optim.min_lr == 1e-6
    assert (preset.optim.layer_decay, preset.optim.patch_embed_lr_multiplier) == (0.9, 0.2)
    assert (preset.drop_path_rate, preset.gradient_clip) == (0.3, 3.0)


def test_a_preset_builds_dinov2s_objective_and_crops() -> None:
    vit = create_vit('vit_small_patch14_dinov2', img_size=224, **DINOv2.backbone_options)
    model = DINOv2(vit, **get_preset('paper-released', 'D').objective)
    assert (model.views.global_size, model.views.local_size, model.views.num_local) == (224, 98, 8)
    assert (model.views.global_scale, model.views.local_scale) == ((0.32, 1.0), (0.05, 0.32))
    assert (model.views.horizontal_flip, model.views.vertical_flip, model.views.quarter_turns) == (
        True,
        False,
        False,
    )
    # DINOv2's code applies the complements of 1, 0.1 and 0.5.
    assert (model.views.blur, model.views.blur_sigma) == ((0.0, 0.9, 0.5), (0.1, 2.0))
    assert (model.masks.ratio, model.masks.probability) == ((0.1, 0.5), 0.5)
    losses = model.losses
    assert (losses.student_temperature, losses.koleo_weight, model.ibot_head) == (0.1, 0.1, None)


def test_norms_and_the_class_token_train_in_every_recipe() -> None:
    for recipes in PRESETS.values():
        for preset in recipes.values():
            assert preset.adaptation.train_norms and preset.adaptation.train_cls_token
            assert preset.adaptation.targets == ('q', 'v') and preset.optim.weight_decay == 0


@pytest.mark.parametrize(
    ('name', 'letter'), [('paper', 'M'), ('paper-workshop', 'X'), ('paper-sentinel', 'D')]
)
def test_an_unknown_recipe_is_refused_with_those_that_exist(name: str, letter: str) -> None:
    with pytest.raises(
        ValueError, match=r'expected one of paper-workshop \(M and D\), paper-released .*paper-sentinel \(M\)'
    ):
        get_preset(name, letter)


class Foreign(MAE):
    """An objective of somebody else, without a recipe for all that it derives from one that has."""


@pytest.mark.parametrize('objective', [None, DINOv2, partial(DINOv2), partial(DINOv2, head=None)])
def test_the_objective_by_notation_or_by_class_trains_alike(objective: Any) -> None:
    choice = choose('paper-workshop', 'D-[L]-r32', objective, None)
    recipe = PRESETS['paper-workshop']['D']
    assert (
        choice.factory.keywords == {'head': None, **recipe.objective}
        or choice.factory.keywords == recipe.objective
    )
    assert choice.factory.keywords['head'].prototypes == 65536
    assert (choice.recipe.drop_path_rate, choice.recipe.adaptation, choice.preset) == (
        0.3,
        recipe.adaptation,
        'paper-workshop',
    )


def test_what_is_given_overrides_the_preset() -> None:
    head = HeadConfig(prototypes=24)
    choice = choose('paper-workshop', 'D-[L]-r32', partial(DINOv2, head=head, koleo_weight=0.3), None)
    kept = PRESETS['paper-workshop']['D'].objective
    assert choice.factory.keywords == {**kept, 'head': head, 'koleo_weight': 0.3}
    assert choice.report == 'preset paper-workshop for DINOv2; overridden: head'


def test_notation_leaves_alpha_to_the_preset_and_a_configuration_does_not() -> None:
    assert choose('paper-released', 'M-[1,L]-r8', None, None).recipe.adaptation == ExPLoRAConfig(
        (0, -1), 8, alpha=1, mlp_rank_ratio=0.25
    )
    own = ExPLoRAConfig((0,), 8)
    assert choose('paper-released', own, MAE, None).recipe.adaptation == own
    assert choose('paper-released', own.to_dict(), MAE, None).recipe.adaptation == own
    assert choose('paper-released', 'full', MAE, None).recipe.adaptation.full


@pytest.mark.parametrize('objective', [MAE, partial(MAE, mask_ratio=0.5), Foreign])
def test_a_notation_that_contradicts_the_objective_is_refused(objective: Any) -> None:
    with pytest.raises(ValueError, match=r"adaptation 'D-ExPLoRA-\[L\]-r4' expects objective DINOv2, got "):
        choose('paper-workshop', 'D-ExPLoRA-[L]-r4', objective, None)


@pytest.mark.parametrize(
    ('weights', 'expected'),
    [
        (ViTTiny8_Weights.TINY_IMAGENET_MAE, MAE),
        ('ViTSmall14_Weights.LVD142M_DINOV2_DEPTH6', DINOv2),
        (ViTLarge16_Weights.FMOW_RGB_SATMAE, MAE),
        (ViTLarge14_Weights.LVD142M_DINOV2, DINOv2),
        ('timm/vit_small_patch14_dinov2.lvd142m', DINOv2),
        ('timm/vit_base_patch16_224.mae', MAE),
    ],
    ids=str,
)
def test_weights_that_say_what_made_them_name_the_objective(weights: Any, expected: type[Objective]) -> None:
    assert choose('paper-workshop', '[L]-r32', None, weights).factory.func is expected


def test_a_file_with_a_decoder_names_mae_and_one_with_heads_dinov2(base_file: Path, tmp_path: Path) -> None:
    assert choose(None, '[L]-r4', None, base_file).factory is MAE
    state = torch.nn.Module().state_dict()
    vit = create_vit('vit_tiny_patch8_32')
    torch.save({**vit.state_dict(), 'dino_head.mlp.0.weight': torch.zeros(2, 2)}, tmp_path / 'd.pth')
    assert choose(None, '[L]-r4', None, tmp_path / 'd.pth').factory is DINOv2
    torch.save({**vit.state_dict(), **state}, tmp_path / 'plain.pth')
    for weights in (tmp_path / 'plain.pth', 'timm/vit_base_patch16_224.augreg_in21k', None):
        with pytest.raises(ValueError, match=r'no objective set, .* set adaptation to M-ExPLoRA'):
            choose('paper-workshop', '[L]-r32', None, weights)


def test_an_objective_from_outside_takes_no_preset_and_says_so(build_task: Task) -> None:
    task = build_task(objective=partial(Foreign, decoder_num_heads=2), preset='paper-released', optim=None)
    assert task.recipe_report == ('preset paper-released has no recipe for Foreign and is not used')
    assert (task.optim.base_lr, task.config.alpha, task.hparams['preset']) == (1.5e-4, None, None)
    hidden = build_task(objective=lambda vit: MAE(vit, decoder_num_heads=2), preset='paper-released')
    assert 'is not used' in hidden.recipe_report


def test_without_a_preset_the_defaults_of_the_groups_hold(build_task: Task) -> None:
    task = build_task(objective=DINOv2, adaptation='D-[L]-r4', optim=None)
    assert task.model.dino_head.last_layer.weight_v.shape[0] == 4096
    assert task.model.targets == TeacherConfig() and task.hparams['preset'] is None
    assert {block.drop_path1.__class__ for block in task.backbone.blocks} == {torch.nn.Identity}


def build_from_yaml(folder: Path, arguments: str) -> Any:
    """The task of a YAML file; the parser fills in the defaults of what it reads."""
    file = folder / 'run.yaml'
    file.write_text(
        f'trainer: {{accelerator: cpu, logger: false, default_root_dir: {folder}}}\n'
        'model: {class_path: explora_geo.trainers.ExPLoRATask, init_args: {model: vit_tiny_patch8_64, '
        f'weights: ViTTiny8_Weights.TINY_IMAGENET_MAE, {arguments}}}}}\n'
        'data: {class_path: explora_geo.datamodules.FolderDataModule, '
        'init_args: {root: tests/data/eurosat_rgb/train}}\n'
    )
    return run(['fit', '--config', str(file)], start=False).model


@pytest.mark.slow
def test_a_yaml_file_that_names_the_class_gets_the_preset(tmp_path: Path) -> None:
    common, found = 'adaptation: "M-[L]-r32", preset: paper-released', []
    for given in ('', ', objective: {class_path: explora_geo.objectives.MAE}'):
        task = build_from_yaml(tmp_path, common + given)
        found.append((trainable_summary(task.model.decoder), task.config, task.optim, task.model.mask_ratio))
    assert found[0] == found[1]
    assert found[0][0]['LoRA'] == 2 * 4 * 128 * 8 and found[0][1].alpha == 1


def test_a_yaml_file_gives_the_anchor_its_settings_flat(tmp_path: Path) -> None:
    task = build_from_yaml(
        tmp_path,
        'adaptation: "[L]-r32", objective: {class_path: explora_geo.objectives.Anchor, '
        'init_args: {turns: 8, whitening: 0.25}}',
    )
    assert task.model.anchor.config == AnchorConfig(turns=8, whitening=0.25)


def test_yaml_files_with_the_old_keys_work(tmp_path: Path) -> None:
    with pytest.warns(FutureWarning) as said:
        task = build_from_yaml(
            tmp_path,
            'adaptation: "D-[L]-r32", optim: {base_lr: 1.0e-3, warmup: 0.1}, objective: {class_path: '
            'explora_geo.objectives.DINOv2, init_args: {head: {prototypes: 24}, head_warmup: 0.2, '
            'ibot_weight: 0.5, token: avg, '
            'teacher: {temperature_warmup: 2}, views: {global_size: 64, flips: false}}}',
        )
    assert task.optim.warmup_length == ('warmup_fraction', 0.1)
    assert task.model.phases.head_warmup == ('head_warmup_fraction', 0.2)
    assert task.model.phases.freeze_last_layer == ('freeze_last_layer_steps', 1250)  # the preset's
    assert task.model.losses == LossConfig(ibot_weight=0.5, token='avg')
    assert task.model.targets.warmup_length == ('temperature_warmup_epochs', 2)
    assert (task.model.views.horizontal_flip, task.model.views.vertical_flip) == (False, False)
    names = {str(w.message).split(':')[0] for w in said if w.category is FutureWarning}
    assert names >= {'warmup', 'head_warmup', 'temperature_warmup', 'flips', 'ibot_weight', 'token'}
