"""`explora-geo export`."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.checkpoints import load_backbone, save_adapter
from explora_geo.trainers import ClassificationTask, load_task, save_task

MODEL = ['--model', 'vit_tiny_patch8_32']


@pytest.fixture
def tuned(base_file: Path, tmp_path: Path) -> Path:
    """A tuned model that learnt nothing."""
    task = ClassificationTask(model='vit_tiny_patch8_32', weights=str(base_file), num_classes=3)
    save_task(tmp_path / 'tuned.safetensors', task.eval())
    return tmp_path / 'tuned.safetensors'


def test_a_backbone_becomes_every_kind_of_file(
    run: Callable[..., str], base_file: Path, tmp_path: Path, images: Tensor
) -> None:
    for name in ('m.safetensors', 'm.ckpt', 'm.pt2'):
        run('export', tmp_path / name, '--weights', base_file, *MODEL)
    vit = load_backbone('vit_tiny_patch8_32', base_file)
    state = load_file(tmp_path / 'm.safetensors')
    assert state.keys() == vit.state_dict().keys()
    again = load_backbone(None, tmp_path / 'm.safetensors', img_size=32)
    assert again.name == 'vit_tiny_patch8_32'
    with torch.no_grad():
        assert_close(again(images).cls, vit(images).cls)
        found = torch.export.load(tmp_path / 'm.pt2').module()(images)
        assert_close(found[0], vit(images).cls, atol=1e-5, rtol=1e-4)


def test_a_tuned_model_becomes_a_program(
    run: Callable[..., str], tuned: Path, tmp_path: Path, images: Tensor
) -> None:
    run('export', tmp_path / 't.pt2', '--tuned', tuned)
    with torch.no_grad():
        found = torch.export.load(tmp_path / 't.pt2').module()(images)
        assert_close(found, load_task(tuned)(images), atol=1e-5, rtol=1e-4)


def test_mistakes_end_in_one_sentence(
    refuse: Callable[..., str], base_file: Path, tuned: Path, tmp_path: Path
) -> None:
    out = tmp_path / 'm.safetensors'
    assert 'use extension .safetensors' in refuse('export', tmp_path / 'm.h5', '--weights', base_file, *MODEL)
    assert 'contain only a backbone' in refuse('export', out, '--tuned', tuned)
    assert 'pass either weights' in refuse('export', out)
    program = ['export', tmp_path / 'm.pt2', '--tuned', tuned]
    assert 'adapter and model cannot be combined with tuned' in refuse(
        *program, '--adapter', tmp_path / 'missing'
    )
    assert 'does not specify its backbone' in refuse('export', out, '--weights', base_file)


def test_an_adapter_goes_to_peft_by_its_file_alone(
    run: Callable[..., str], refuse: Callable[..., str], base_file: Path, tmp_path: Path
) -> None:
    vit, config = load_backbone('vit_tiny_patch8_32', base_file), ExPLoRAConfig.parse('[L]-r4')
    save_adapter(tmp_path / 'adapter.safetensors', explora(vit, config), vit.name, config)  # type: ignore[arg-type]
    out, adapter = tmp_path / 'peft', ['--adapter', tmp_path / 'adapter.safetensors']
    printed = run('export', out, '--format', 'peft', *adapter)
    assert 'load it with PeftModel.from_pretrained; cls_token saved in parameters.safetensors' in ' '.join(
        printed.split()
    )
    names = ['README.md', 'adapter_config.json', 'adapter_model.safetensors', 'parameters.safetensors']
    assert sorted(p.name for p in out.iterdir()) == names
    assert 'format must be peft or transformers' in refuse('export', out, '--format', 'onnx', *adapter)
    assert 'format peft exports an adapter' in refuse('export', out, '--format', 'peft')
    assert 'format transformers exports a backbone' in refuse(
        'export', out, '--format', 'transformers', *adapter
    )
    weights = ('--format', 'transformers', '--weights', base_file)
    assert 'supports only DINOv2' in refuse('export', out, *weights, '--model', 'vit_tiny_patch8_32')
