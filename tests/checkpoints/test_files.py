"""Files of tensors are read without running code, and written in one piece or not at all."""

import os
import pickle
import stat
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

from explora_geo.checkpoints import atomic_path, read_state, write_state
from explora_geo.checkpoints.files import QUANTIZATION, quantize_rows
from explora_geo.models import create_vit


class Hostile:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def state() -> dict[str, Tensor]:
    return {'a.weight': torch.randn(3, 4), 'a.bias': torch.randn(3)}


@pytest.mark.parametrize('nest', [None, 'model', 'state_dict', 'teacher', 'module'])
def test_tensors_are_found_in_the_nests_of_trainers(tmp_path: Path, nest: str | None) -> None:
    expected = state()
    content = expected if nest is None else {nest: expected, 'epoch': 3}
    torch.save(content, tmp_path / 'file.pth')
    found, metadata = read_state(tmp_path / 'file.pth')
    assert list(found) == list(expected) and metadata == {}
    assert all(torch.equal(found[k], v) for k, v in expected.items())


def test_what_is_written_is_read_back_with_its_metadata(tmp_path: Path) -> None:
    expected = state()
    expected['transposed'] = torch.randn(4, 3).T
    path = tmp_path / 'new' / 'folder' / 'file.safetensors'
    write_state(path, expected, {'bands': '["red"]'})
    found, metadata = read_state(path)
    assert metadata == {'bands': '["red"]'}
    assert all(torch.equal(found[k], v) for k, v in expected.items())
    assert os.listdir(path.parent) == ['file.safetensors']


def test_a_failing_write_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, fail_to_write: Callable[[], None]
) -> None:
    path = tmp_path / 'file.safetensors'
    write_state(path, state(), {})
    before = path.read_bytes()

    fail_to_write()
    with pytest.raises(OSError, match='No space left'):
        write_state(path, state(), {})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ['file.safetensors']


def test_an_interrupted_block_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / 'file') as temporary:
        temporary.write_text('half')
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_written_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    (tmp_path / 'other').touch()
    with atomic_path(tmp_path / 'file') as temporary:
        temporary.write_text('whole')
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ('file', 'other')]
    assert modes[0] == modes[1]


@pytest.mark.parametrize('name', ['file.pth', 'file.pt', 'file.ckpt', 'file.bin', 'file'])
@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('wrapped', [True, False])
def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path: Path, name: str, wrapped: bool) -> None:
    trap = tmp_path / 'trap'
    if wrapped:
        torch.save({'model': state(), 'args': Hostile(trap)}, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(Hostile(trap)))
    with pytest.raises(ValueError, match='damaged or contains code') as caught:
        read_state(tmp_path / name)
    assert not trap.exists() and '\n' not in str(caught.value)


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth', '.old.pth'])
def test_a_truncated_file_is_refused_wherever_it_was_cut(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f'file{suffix}'
    if suffix == '.safetensors':
        save_file(state(), path)
    else:
        torch.save(state(), path, _use_new_zipfile_serialization=suffix == '.pth')
    content = path.read_bytes()
    for cut in [*range(0, 40), *range(40, len(content) - 1, 37), len(content) - 1]:
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match=str(path)) as caught:
            read_state(path)
        assert '\n' not in str(caught.value)


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
@pytest.mark.parametrize('content', [b'', b'version https://git-lfs', b'<html>', bytes(range(256))])
def test_a_file_of_something_else_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f'file{suffix}'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=str(path)):
        read_state(path)


@pytest.mark.parametrize(
    ('content', 'sentence'),
    [([1, 2], 'contains a list, expected a state dict'), ({'epoch': 1}, 'no tensors'), ({}, 'no tensors')],
)
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: object, sentence: str) -> None:
    torch.save(content, tmp_path / 'file.pth')
    with pytest.raises(ValueError, match=sentence):
        read_state(tmp_path / 'file.pth')


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / 'none.pth', tmp_path):
        with pytest.raises(FileNotFoundError, match=f'weights file not found: {path}'):
            read_state(path)


def test_a_trainers_arguments_beside_the_tensors_are_no_obstacle(tmp_path: Path) -> None:
    content = {'model': state(), 'args': Namespace(lr=0.1, model='mae_vit_large_patch16'), 'epoch': 199}
    torch.save(content, tmp_path / 'checkpoint-199.pth')
    found, _ = read_state(tmp_path / 'checkpoint-199.pth')
    assert sorted(found) == sorted(state())


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
        (
            lambda s: s.pop('blocks.0.attn.qkv.weight'),
            'blocks.0.attn.qkv.weight.scale has no matching int8 tensor',
        ),
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
