"""Exported files in the libraries that load them."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchgeo
from peft import PeftModel
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.testing import assert_close

from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.checkpoints import load_backbone, load_weights, save_adapter, write_state
from explora_geo.checkpoints.backbone import describe_weights
from explora_geo.checkpoints.export import export, export_peft
from explora_geo.models import ViT, create_vit

NAME = 'vit_tiny_patch16_224'


@pytest.fixture(scope='module')
def vit() -> ViT:
    """A backbone that timm has by this name, with random weights."""
    torch.manual_seed(0)
    return create_vit(NAME, mask_token=True).eval()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 224, 224)


def torchgeo_task() -> Any:
    """TorchGeo's own task, wherever this version has it."""
    modules = ('torchgeo.tasks', 'torchgeo.trainers')
    module = importlib.import_module(next(m for m in modules if importlib.util.find_spec(m) is not None))
    return getattr(module, 'ClassificationTask', None) or module.Classification


@torch.no_grad()
def test_timm_loads_the_file_strictly_with_equal_features(vit: ViT, image: Tensor, tmp_path: Path) -> None:
    export(vit, NAME, tmp_path / 'm.safetensors')
    model = timm.create_model(NAME, num_classes=0).eval()
    model.load_state_dict(load_file(tmp_path / 'm.safetensors'), strict=True)
    found, expected = model.forward_features(image), vit(image)
    assert_close(found[:, 0], expected.cls, atol=1e-4, rtol=1e-4)
    assert_close(found[:, 1:], expected.patches[:, 0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_torchgeos_own_task_takes_the_checkpoint_as_weights(vit: ViT, image: Tensor, tmp_path: Path) -> None:
    export(vit, NAME, tmp_path / 'm.ckpt')
    task = torchgeo_task()(model=NAME, weights=str(tmp_path / 'm.ckpt'), num_classes=5).eval()
    assert_close(task.model.forward_features(image)[:, 0], vit(image).cls, atol=1e-4, rtol=1e-4)
    assert torchgeo.__version__


@torch.no_grad()
def test_encoders_of_segmentation_models_pytorch_take_the_file(
    vit: ViT, image: Tensor, tmp_path: Path
) -> None:
    export(vit, NAME, tmp_path / 'm.safetensors')
    model = smp.DPT(encoder_name=f'tu-{NAME}', encoder_weights=None, classes=3).eval()
    # Only the classifier, which the encoder does not run, and the norm, which it does not have, differ.
    outcome = model.encoder.model.load_state_dict(load_file(tmp_path / 'm.safetensors'), strict=False)
    assert all(k.startswith('head.') for k in outcome.missing_keys) and not outcome.unexpected_keys
    features, _ = model.encoder(image)
    tokens, _, _ = vit.embed(image)
    for block in vit.blocks:
        tokens = block(tokens)
    assert_close(features[-1].flatten(2).mT, tokens[:, 1:], atol=1e-3, rtol=1e-3)
    assert model(image).shape == (2, 3, 224, 224)


@torch.no_grad()
def test_a_program_of_torch_export_takes_any_number_of_images(
    build_vit: Callable[..., ViT], images: Tensor, tmp_path: Path
) -> None:
    vit = build_vit().eval()
    export(vit, '', tmp_path / 'm.pt2')
    found = torch.export.load(tmp_path / 'm.pt2').module()(images[:5])
    for a, b in zip(found, vit(images[:5])[:2], strict=True):
        assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_onnx_equals_torch_or_names_what_it_needs(build_vit: Callable[..., ViT], tmp_path: Path) -> None:
    if all(importlib.util.find_spec(n) for n in ('onnx', 'onnxscript', 'onnxruntime')):
        assert export(build_vit(), '', tmp_path / 'm.onnx') < 1e-3
        assert (tmp_path / 'm.onnx').stat().st_size > 1e5
    else:
        with pytest.raises(ImportError, match=r'ONNX needs onnx.*pip install "explora_geo\[onnx\]"'):
            export(build_vit(), '', tmp_path / 'm.onnx')


def test_what_timm_has_not_is_refused(small_names: None, tmp_path: Path) -> None:
    options = {'channel_groups': [['B02', 'B03', 'B04'], ['B8A']]}
    vit = create_vit('vit_tiny_patch8_32', tokenizer='group-channel', tokenizer_options=options)
    with pytest.raises(ValueError, match='timm has no model with tokenizer group-channel'):
        export(vit, 'vit_tiny_patch8_32', tmp_path / 'm.safetensors')


@pytest.mark.parametrize(
    ('changes', 'bare'),
    [
        ({'train_cls_token': False}, []),
        ({}, ['cls_token']),
        (
            {
                'train_cls_token': False,
                'unfrozen_blocks': (0, -1),
                'alpha': 2.0,
                'targets': ('k', 'v', 'proj'),
            },
            [],
        ),
        ({'targets': ('q', 'v', 'fc1', 'fc2'), 'mlp_rank_ratio': 0.5, 'extra': ('pos_embed',)}, None),
        ({'extra': ('patch_embed',), 'train_norms': False, 'unfrozen_blocks': ()}, ['cls_token']),
    ],
    ids=['plain', 'cls', 'scaled', 'mlp', 'patches'],
)
@torch.no_grad()
def test_peft_reads_an_adapter_with_equal_features(
    base_file: Path, images: Tensor, tmp_path: Path, changes: dict[str, Any], bare: list[str] | None
) -> None:
    name = 'vit_tiny_patch8_32'
    config = ExPLoRAConfig(**{'unfrozen_blocks': (-1,), 'rank': 4, **changes})
    ours = create_vit(name)
    load_weights(ours, base_file)
    base = {k: v.clone() for k, v in ours.state_dict().items()}
    explora(ours, config).eval()
    for parameter in ours.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn_like(parameter)
    save_adapter(tmp_path / 'adapter.safetensors', ours, name, config)
    out = tmp_path / 'peft'
    beside = export_peft(tmp_path / 'adapter.safetensors', out)
    assert beside == (['cls_token', 'pos_embed'] if bare is None else bare)
    theirs = VisionTransformer(32, 8, num_classes=0, embed_dim=32, depth=3, num_heads=2)
    theirs.load_state_dict(base)
    card = (out / 'README.md').read_text()
    if beside:
        assert f'contains the trained {", ".join(beside)}: PEFT' in card
        theirs.load_state_dict(load_file(out / 'parameters.safetensors'), strict=False)
    assert (out / 'parameters.safetensors').exists() == bool(beside)
    adapted: Any = PeftModel.from_pretrained(theirs, str(out)).eval()
    found, expected = adapted.base_model.model.forward_features(images), ours(images)
    assert_close(found[:, 0], expected.cls, atol=1e-5, rtol=1e-5)
    assert_close(found[:, 1:], expected.patches[:, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ('name', 'train_cls_token', 'refused'),
    [
        ('vit_small_patch14_reg4_dinov2', False, ''),
        (
            'vit_small_patch14_reg4_dinov2',
            True,
            'timm adds the position to the class token, which was trained here',
        ),
        ('vit_small_patch16_dinov3', True, ''),
        ('vit_small_patch16_dinov3_qkvb', False, 'if Q and V have separate biases'),
    ],
)
@torch.no_grad()
def test_peft_reads_adapters_of_dinov2_with_registers_and_dinov3(
    small_names: None, tmp_path: Path, name: str, train_cls_token: bool, refused: str
) -> None:
    config = ExPLoRAConfig(rank=4, train_cls_token=train_cls_token)
    vit = create_vit(name, img_size=64 if 'patch16' in name else 56).eval()
    for parameter in vit.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    export(vit, name, tmp_path / 'base.safetensors')
    stated = describe_weights(tmp_path / 'base.safetensors')
    assert stated['width, blocks'] == '32, 2, 4 registers'
    assert ('rotary' in stated['image size']) == ('dinov3' in name)
    for parameter in explora(vit, config).parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn_like(parameter)
    save_adapter(tmp_path / 'adapter.safetensors', vit, name, config)
    if refused:
        with pytest.raises(ValueError, match=refused):
            export_peft(tmp_path / 'adapter.safetensors', tmp_path / 'peft')
        return
    bare = export_peft(tmp_path / 'adapter.safetensors', tmp_path / 'peft')
    side = vit.patch_embed.img_size
    theirs: Any = timm.create_model(name, num_classes=0, img_size=side, depth=2, embed_dim=32, num_heads=2)
    theirs.load_state_dict(load_file(tmp_path / 'base.safetensors'))
    if bare:
        theirs.load_state_dict(load_file(tmp_path / 'peft' / 'parameters.safetensors'), strict=False)
    adapted: Any = PeftModel.from_pretrained(theirs, str(tmp_path / 'peft')).eval()
    image = torch.randn(2, 3, side, side)
    found, expected = adapted.base_model.model.forward_features(image), vit(image)
    assert_close(found[:, 0], expected.cls, atol=1e-5, rtol=1e-5)
    assert_close(found[:, 5:], expected.patches[:, 0], atol=1e-5, rtol=1e-5)


def test_of_a_fused_qkv_the_rows_of_k_are_zero(base_file: Path, tmp_path: Path) -> None:
    config = ExPLoRAConfig.parse('[L]-r4')
    vit = load_backbone('vit_tiny_patch8_32', base_file)
    save_adapter(tmp_path / 'a.safetensors', explora(vit, config), vit.name, config)  # type: ignore[arg-type]
    export_peft(tmp_path / 'a.safetensors', tmp_path / 'peft', license='MIT')
    state = load_file(tmp_path / 'peft' / 'adapter_model.safetensors')
    prefix = 'base_model.model.blocks.0.attn.qkv.'
    assert state[f'{prefix}lora_A.weight'].shape == (8, 32)
    assert not state[f'{prefix}lora_B.weight'][32:64].any()
    settings = json.loads((tmp_path / 'peft' / 'adapter_config.json').read_text())
    assert settings['r'] == settings['lora_alpha'] == 8 and settings['base_model_name_or_path'] == 'base.pth'
    assert 'license: mit' in (tmp_path / 'peft' / 'README.md').read_text()


def test_what_is_no_model_of_timm_has_no_adapter_of_peft(small_names: None, tmp_path: Path) -> None:
    options, config = {'channel_groups': [['B02', 'B03', 'B04'], ['B8A']]}, ExPLoRAConfig.parse('[L]-r4')
    vit = create_vit('vit_tiny_patch8_32', tokenizer='group-channel', tokenizer_options=options)
    save_adapter(tmp_path / 'a.safetensors', explora(vit, config), vit.name, config)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='timm has no model with tokenizer group-channel'):
        export_peft(tmp_path / 'a.safetensors', tmp_path / 'peft')
    plain = explora(create_vit(vit.name), none := ExPLoRAConfig(rank=0))
    save_adapter(tmp_path / 'none.safetensors', plain, vit.name, none)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r'none\.safetensors: it contains no LoRA, which PEFT needs: merge it'
    ):
        export_peft(tmp_path / 'none.safetensors', tmp_path / 'peft')
    write_state(tmp_path / 'no.safetensors', vit.state_dict(), {})
    with pytest.raises(ValueError, match='is not an adapter file'):
        export_peft(tmp_path / 'no.safetensors', tmp_path / 'peft')
    assert not (tmp_path / 'peft').exists()
