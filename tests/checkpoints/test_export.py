"""Exported files in the libraries that load them."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchgeo
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from explora_geo.checkpoints.export import export_onnx, export_program, export_timm, export_torchgeo
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
    export_timm(vit, NAME, tmp_path / 'm.safetensors')
    model = timm.create_model(NAME, num_classes=0).eval()
    model.load_state_dict(load_file(tmp_path / 'm.safetensors'), strict=True)
    found, expected = model.forward_features(image), vit(image)
    assert_close(found[:, 0], expected.cls, atol=1e-4, rtol=1e-4)
    assert_close(found[:, 1:], expected.patches[:, 0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_torchgeos_own_task_takes_the_checkpoint_as_weights(vit: ViT, image: Tensor, tmp_path: Path) -> None:
    export_torchgeo(vit, NAME, tmp_path / 'm.ckpt')
    task = torchgeo_task()(model=NAME, weights=str(tmp_path / 'm.ckpt'), num_classes=5).eval()
    assert_close(task.model.forward_features(image)[:, 0], vit(image).cls, atol=1e-4, rtol=1e-4)
    assert torchgeo.__version__


@torch.no_grad()
def test_encoders_of_segmentation_models_pytorch_take_the_file(
    vit: ViT, image: Tensor, tmp_path: Path
) -> None:
    export_timm(vit, NAME, tmp_path / 'm.safetensors')
    model = smp.DPT(encoder_name=f'tu-{NAME}', encoder_weights=None, classes=3).eval()
    # Only the classifier, which the encoder does not run, and the norm, which it does not have, differ.
    outcome = model.encoder.model.load_state_dict(load_file(tmp_path / 'm.safetensors'), strict=False)
    assert all(k.startswith('head.') for k in outcome.missing_keys) and not outcome.unexpected_keys
    features, _ = model.encoder(image)
    tokens, _ = vit.embed(image)
    for block in vit.blocks:
        tokens = block(tokens)
    assert_close(features[-1].flatten(2).mT, tokens[:, 1:], atol=1e-3, rtol=1e-3)
    assert model(image).shape == (2, 3, 224, 224)


@torch.no_grad()
def test_a_program_of_torch_export_takes_any_number_of_images(
    build_vit: Callable[..., ViT], images: Tensor, tmp_path: Path
) -> None:
    vit = build_vit().eval()
    export_program(vit, images[:2], tmp_path / 'm.pt2')
    found = torch.export.load(tmp_path / 'm.pt2').module()(images[:5])
    for a, b in zip(found, vit(images[:5]), strict=True):
        assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_onnx_equals_torch_or_names_what_it_needs(
    build_vit: Callable[..., ViT], images: Tensor, tmp_path: Path
) -> None:
    if all(importlib.util.find_spec(n) for n in ('onnx', 'onnxscript', 'onnxruntime')):
        assert export_onnx(build_vit(), images[:2], tmp_path / 'm.onnx') < 1e-3
        assert (tmp_path / 'm.onnx').stat().st_size > 1e5
    else:
        with pytest.raises(ImportError, match=r'ONNX needs onnx.*pip install "explora_geo\[onnx\]"'):
            export_onnx(build_vit(), images[:2], tmp_path / 'm.onnx')


def test_what_timm_has_not_is_refused(small_names: None, tmp_path: Path) -> None:
    options = {'channel_groups': [['B02', 'B03', 'B04'], ['B8A']]}
    vit = create_vit('vit_tiny_patch8_32', tokenizer='group-channel', tokenizer_options=options)
    with pytest.raises(ValueError, match='timm has no model with the tokenizer group-channel'):
        export_timm(vit, 'vit_tiny_patch8_32', tmp_path / 'm.safetensors')
