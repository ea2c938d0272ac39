"""Presets hold the published numbers (workshop text, appendix D, and released scripts)."""

import pytest

from explora_geo.adaptation import ExPLoRAConfig
from explora_geo.models import create_vit
from explora_geo.objectives import DINOv2
from explora_geo.trainers import PRESETS
from explora_geo.trainers.presets import get_preset


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


def test_workshop_mae() -> None:
    preset = get_preset('paper-workshop', 'M')
    assert (preset.batch, preset.steps, preset.epochs) == (1024, None, 200)
    assert (preset.optim.base_lr, preset.optim.weight_decay, preset.optim.warmup) == (1.5e-4, 0, 1)


def test_released_dinov2() -> None:
    preset = get_preset('paper-released', 'D')
    assert (preset.batch, preset.optim.base_lr) == (1024, 1e-3)
    # U=[23] counted from 0 is the last of ViT-L's 24 blocks.
    assert preset.adaptation == ExPLoRAConfig((-1,), 64, alpha=1)


def test_released_mae() -> None:
    preset = get_preset('paper-released', 'M')
    assert (preset.batch, preset.epochs, preset.optim.base_lr) == (1024, 400, 4.5e-4)
    assert preset.optim.betas == (0.9, 0.95)
    assert (preset.adaptation.rank, preset.adaptation.alpha) == (64, 1)
    assert (preset.objective['mask_ratio'], preset.objective['norm_pix_loss']) == (0.75, True)
    decoder = preset.objective['decoder_adaptation']
    assert (decoder.unfrozen_blocks, decoder.rank, decoder.train_norms) == ((), 8, True)


@pytest.mark.parametrize(
    ('name', 'notation'), [('paper-sentinel', 'M-ExPLoRA-[1,L]-r32'), ('paper-temporal', 'M-ExPLoRA-[L]-r32')]
)
def test_sentinel_and_temporal(name: str, notation: str) -> None:
    preset = get_preset(name, 'M')
    assert preset.adaptation.notation('M') == notation
    assert (preset.batch, preset.epochs, preset.optim.base_lr) == (1024, 50, 4.5e-4)
    assert preset.objective['decoder_adaptation'].notation() == '[]-r32'


@pytest.mark.parametrize(('name', 'epochs'), [('paper-workshop', 1), ('paper-released', 3)])
def test_dinov2s_defaults_fill_what_the_paper_leaves_open(name: str, epochs: int) -> None:
    preset = get_preset(name, 'D')
    head, teacher = preset.objective['head'], preset.objective['teacher']
    assert (head.prototypes, head.hidden_dim, head.bottleneck_dim, head.num_layers) == (65536, 2048, 256, 3)
    assert (teacher.momentum, teacher.temperature, teacher.final_temperature) == (0.992, 0.04, 0.07)
    assert (teacher.temperature_warmup, teacher.center_momentum) == (30, 0.9)
    assert preset.objective['freeze_last_layer'] == epochs
    assert preset.optim.lr_scaling == 'sqrt' and preset.optim.betas == (0.9, 0.999)
    assert (preset.optim.warmup, preset.optim.min_lr) == (10, 1e-6)
    assert (preset.optim.layer_decay, preset.optim.patch_embed_lr_multiplier) == (0.9, 0.2)
    assert (preset.drop_path_rate, preset.gradient_clip) == (0.3, 3.0)


def test_a_preset_builds_dinov2s_objective_and_crops() -> None:
    vit = create_vit('vit_small_patch14_dinov2', img_size=224, **DINOv2.backbone_options)
    model = DINOv2(vit, **get_preset('paper-released', 'D').objective)
    assert (model.views.global_size, model.views.local_size, model.views.num_local) == (224, 98, 8)
    assert (model.views.global_scale, model.views.local_scale) == ((0.32, 1.0), (0.05, 0.32))
    assert (model.masks.ratio, model.masks.probability) == ((0.1, 0.5), 0.5)
    assert (model.student_temperature, model.koleo_weight, model.ibot_head) == (0.1, 0.1, None)


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
        ValueError, match=r'there are paper-workshop \(M and D\), paper-released .*paper-sentinel \(M\)'
    ):
        get_preset(name, letter)
