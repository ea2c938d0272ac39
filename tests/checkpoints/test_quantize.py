"""Small files of int8 rows are read back as weights."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from explora_geo.checkpoints import read_state, write_state
from explora_geo.checkpoints.files import QUANTIZATION, quantize_rows
from explora_geo.models import create_vit


def test_matrices_return_within_half_a_step_of_their_row(tmp_path: Path) -> None:
    state = create_vit('vit_tiny_patch8_64').state_dict()
    state['blocks.0.mlp.fc1.weight'][3] = 0
    path = tmp_path / 'small.safetensors'
    write_state(path, quantize_rows(state), QUANTIZATION)
    found, _ = read_state(path)
    assert found.keys() == state.keys()
    assert all(v.dtype == torch.float32 for v in found.values())
    for name, tensor in state.items():
        # Half a step of int8, and what float16 rounds off scales and small tensors.
        step = tensor.flatten(1).abs().amax(1) / 127 if tensor.ndim > 1 else tensor.new_zeros(len(tensor))
        bound = 0.5 * step.view(-1, *[1] * (tensor.ndim - 1)) + 1e-3 * tensor.abs().max() + 1e-7
        assert ((found[name] - tensor).abs() <= bound).all(), name
    assert not found['blocks.0.mlp.fc1.weight'][3].any()
    assert path.stat().st_size < 0.3 * 4 * sum(v.numel() for v in state.values())


def test_position_codes_and_vectors_keep_half_precision() -> None:
    state = create_vit('vit_tiny_patch8_64').state_dict()
    packed = quantize_rows(state)
    kept = ['pos_embed', 'cls_token', 'norm.weight', 'blocks.0.attn.qkv.bias']
    assert all(packed[name].dtype == torch.float16 for name in kept)
    assert_close(packed['pos_embed'].float(), state['pos_embed'], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ('damage', 'named'),
    [
        (lambda s: s.pop('blocks.0.attn.qkv.weight.scale'), 'blocks.0.attn.qkv.weight is int8'),
        (lambda s: s.pop('blocks.0.attn.qkv.weight'), 'blocks.0.attn.qkv.weight.scale belongs to no'),
        (
            lambda s: s.update({'blocks.0.attn.qkv.weight.scale': torch.ones(5).half()}),
            'blocks.0.attn.qkv.weight is int8',
        ),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, damage: object, named: str) -> None:
    packed = quantize_rows(create_vit('vit_tiny_patch8_64').state_dict())
    damage(packed)  # type: ignore[operator]
    write_state(tmp_path / 'f.safetensors', packed, QUANTIZATION)
    with pytest.raises(ValueError, match=f'f.safetensors is damaged: {named}'):
        read_state(tmp_path / 'f.safetensors')
