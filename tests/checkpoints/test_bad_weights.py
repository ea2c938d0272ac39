"""Weights that must not be used are refused with the reason, before memory is taken for a model."""

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.checkpoints import backbone as loading
from explora_geo.checkpoints import (
    load_backbone,
    load_weights,
    merge_adapter,
    read_adapter,
    read_state,
    save_adapter,
    write_state,
)
from explora_geo.models import ViT, create_vit

MODEL = 'vit_tiny_patch8_32'
Build = Callable[..., ViT]
State = dict[str, Tensor]
NORMALIZATION = {'mean': [100.0, 110.0, 120.0], 'std': [50.0, 40.0, 30.0], 'value_range': [0.0, 255.0]}


@pytest.fixture
def nothing_is_built(small_names: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a backbone is built with numbers."""

    def build(*args: Any, **kwargs: Any) -> ViT:
        vit = create_vit(*args, **kwargs)
        assert vit.cls_token.is_meta, 'memory was taken'
        return vit

    monkeypatch.setattr(loading, 'create_vit', build)


@pytest.fixture
def adapter(base_file: Path, tmp_path: Path) -> Path:
    vit, config = create_vit(MODEL), ExPLoRAConfig.parse('[L]-r4')
    load_weights(vit, base_file)
    save_adapter(tmp_path / 'adapter.safetensors', explora(vit, config), MODEL, config)  # type: ignore[arg-type]
    return tmp_path / 'adapter.safetensors'


def safetensors(path: Path, header: bytes, length: int | None = None, body: bytes = b'') -> Path:
    """A file of that format, made by hand."""
    path.write_bytes(struct.pack('<Q', len(header) if length is None else length) + header + body)
    return path


@pytest.mark.parametrize(
    'make',
    [
        lambda path: safetensors(path, b'{}', 1 << 40),
        lambda path: safetensors(path, b'{}', (1 << 64) - 1),
        lambda path: safetensors(path, b'[' * 100_000),
        lambda path: safetensors(path, b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}'),
        lambda path: safetensors(path, b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,1099511627776]}}'),
        lambda path: safetensors(path, b'{"a":{"dtype":"X9","shape":[],"data_offsets":[0,4]}}', body=b'aaaa'),
    ],
    ids=['header', 'header of 2^64', 'nested', 'shape', 'offsets', 'type'],
)
def test_a_safetensors_header_that_promises_too_much(tmp_path: Path, make: Any) -> None:
    with pytest.raises(ValueError, match=r'file\.safetensors is damaged'):
        read_state(make(tmp_path / 'file.safetensors'))


def test_a_compressed_archive_is_not_unpacked(tmp_path: Path) -> None:
    torch.save({'a': torch.zeros(1 << 20)}, tmp_path / 'plain.pth')
    with (
        zipfile.ZipFile(tmp_path / 'plain.pth') as source,
        zipfile.ZipFile(tmp_path / 'bomb.pth', 'w', zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert (tmp_path / 'bomb.pth').stat().st_size < 20_000
    with pytest.raises(ValueError, match=r'bomb\.pth .*unpack to 4,194,\d+ bytes'):
        read_state(tmp_path / 'bomb.pth')


@pytest.mark.filterwarnings('ignore:Validating sparse tensor invariants')
@pytest.mark.parametrize(
    ('tensor', 'sentence'),
    [
        (torch.zeros(1).expand(10**6, 10**6), 'larger than the file'),
        (torch.eye(3).to_sparse(), 'as a sparse tensor'),
        (torch.empty(3, device='meta'), 'as a meta tensor'),
    ],
    ids=['repeated', 'sparse', 'meta'],
)
def test_what_is_no_plain_block_of_numbers(tmp_path: Path, tensor: Tensor, sentence: str) -> None:
    torch.save({'cls_token': tensor}, tmp_path / 'file.pth')
    with pytest.raises(ValueError, match=rf'file\.pth .*{sentence}'):
        read_state(tmp_path / 'file.pth')


def test_entries_that_have_no_names_are_no_state_dict(tmp_path: Path) -> None:
    torch.save({0: torch.zeros(3)}, tmp_path / 'file.pth')
    with pytest.raises(ValueError, match='contains no tensors'):
        read_state(tmp_path / 'file.pth')


@pytest.mark.parametrize('dtype', [torch.int8, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_weights_of_another_kind_of_number(
    build_vit: Build, encoder_state: State, tmp_path: Path, dtype: torch.dtype
) -> None:
    torch.save({**encoder_state, 'norm.weight': torch.ones(32).to(dtype)}, tmp_path / 'quantised.pth')
    vit = build_vit()
    before = vit.norm.weight.clone()
    with pytest.raises(ValueError, match=rf'quantised\.pth contains norm\.weight as {str(dtype)[6:]}'):
        load_weights(vit, tmp_path / 'quantised.pth')
    assert torch.equal(vit.norm.weight, before)


def test_numbers_too_large_for_the_model(build_vit: Build, encoder_state: State, tmp_path: Path) -> None:
    torch.save(
        {**encoder_state, 'norm.bias': torch.full((32,), 1e300, dtype=torch.float64)}, tmp_path / 'large.pth'
    )
    with pytest.raises(ValueError, match=r'non-finite values in norm\.bias'):
        load_weights(build_vit(), tmp_path / 'large.pth')


def test_nan_in_the_decoder_beside_a_sound_backbone(
    build_vit: Build, mae_state: State, tmp_path: Path
) -> None:
    mae_state['decoder_norm.weight'][3] = torch.nan
    torch.save(mae_state, tmp_path / 'mae.pth')
    with pytest.raises(ValueError, match=r'non-finite values in decoder\.norm\.weight'):
        load_weights(build_vit(), tmp_path / 'mae.pth')


@pytest.mark.parametrize(
    'change',
    [
        {'cls_token': torch.ones(())},
        {'pos_embed': torch.ones(())},
        {'pos_embed': torch.ones(2, 17, 32)},
        {'pos_embed': torch.ones(1, 0, 32)},
        {'blocks.0.attn.q_proj.weight': torch.ones(32, 32)},
        {'decoder_pred.weight': torch.ones(7, 16), 'decoder_pred.bias': torch.ones(7)},
        {'channel_embed': torch.ones(1), 'decoder_channel_embed': torch.ones(1)},
        {'channel_embed': torch.ones(1, 2, 8), 'channel_cls_embed': torch.ones(1, 1, 99)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_tensors_of_impossible_shapes(
    build_vit: Build, encoder_state: State, tmp_path: Path, change: State
) -> None:
    torch.save({**encoder_state, **change}, tmp_path / 'odd.pth')
    with pytest.raises(ValueError, match=r'odd\.pth') as caught:
        load_weights(build_vit(), tmp_path / 'odd.pth')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('name', 'kwargs', 'sentence'),
    [
        ('vit_large_patch8_32', {}, r'\(1, 17, 32\), but the model expects \(1, 17, 1024\)'),
        (MODEL, {'patch_size': 4}, r'patch_embed\.proj\.weight of shape \(32, 3, 8, 8\)'),
        (MODEL, {'img_size': 8000}, 'more than 256x256: use a smaller img_size'),
    ],
)
def test_another_architecture_takes_no_memory(
    nothing_is_built: None, base_file: Path, name: str, kwargs: Any, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        load_backbone(name, base_file, **kwargs)


@pytest.mark.parametrize(
    'meta',
    [
        {'bands': '5'},
        {'bands': 'red'},
        {'bands': '["red", 5]'},
        {'bands': '["red", "red", "red"]'},
        {'tokenizer': '"patch"'},
        {'tokenizer': '{"kind": 5}'},
        {'tokenizer': '{"kind": "patches"}'},
        {'backbone': 'vit_tiny_patch0_0'},
        {'backbone': 'vit_tiny_patch8_80000000'},
    ],
    ids=str,
)
def test_a_file_that_says_nonsense_of_itself(
    nothing_is_built: None, base_state: State, tmp_path: Path, meta: dict[str, str]
) -> None:
    write_state(tmp_path / 'odd.safetensors', base_state, {'backbone': MODEL, **meta})
    with pytest.raises(ValueError, match=r'odd\.safetensors|tokenizer|patch_size'):
        load_backbone(None, tmp_path / 'odd.safetensors')


@pytest.mark.parametrize(
    'change',
    [
        {'img_size': 8 << 30},
        {'img_size': '32'},
        {'patch_size': 0},
        {'patch_size': -8},
        {'bands': 'rgb'},
        {'bands': [1, 2, 3]},
        {'tokenizer': 'temporal', 'tokenizer_options': {'num_frames': 'three'}},
        {'tokenizer_options': [1]},
        {'backbone': None},
        {'base_sha256': 7},
        {'config': {'rank': 1.5}},
        {'config': {'alpha': 'large'}},
        {'config': {'alpha': float('nan')}},
        {'config': {'unfrozen_blocks': ['L']}},
        {'config': {'unfrozen_blocks': [99]}},
        {'config': {'extra': [3]}},
        {'config': {'dropout': None}},
        {'config': {'rang': 8}},
        {'config': {'rank': -8}},
        *(
            {'normalization': {**NORMALIZATION, **wrong}}
            for wrong in (
                {'mean': [1.0]},
                {'std': [1.0, 1.0, 0.0]},
                {'clip': 'yes'},
                {'value_range': [1.0]},
                {'median': [1]},
            )
        ),
        {'normalization': 3},
        {'bands': None},
        *('null', '{', '[]', '{"bands": []}'),
    ],
    ids=str,
)
def test_an_adapter_that_says_nonsense_of_itself(
    nothing_is_built: None, adapter: Path, base_file: Path, change: dict[str, Any] | str
) -> None:
    state, metadata = read_state(adapter)
    text = change
    if isinstance(change, dict):
        header = {**json.loads(metadata['adapter']), **change}
        text = json.dumps({k: v for k, v in header.items() if v is not None or k == 'backbone'})
    write_state(adapter, state, {**metadata, 'adapter': str(text)})
    for use in (read_adapter, lambda path: load_backbone(MODEL, base_file, path)):
        with pytest.raises(ValueError, match=r'adapter\.safetensors has an invalid adapter header'):
            use(adapter)


def test_an_adapter_whose_rank_is_not_that_of_its_tensors_takes_no_memory(
    nothing_is_built: None, adapter: Path, base_file: Path
) -> None:
    state, metadata = read_state(adapter)
    header = json.loads(metadata['adapter'])
    header['config']['rank'] = 1 << 40
    write_state(adapter, state, {**metadata, 'adapter': json.dumps(header)})
    with pytest.raises(
        ValueError, match=r'lora_a\.\w of shape \(4, 32\), but the model expects \(1099511627776, 32\)'
    ):
        merge_adapter(adapter, base_file, adapter.parent / 'merged.safetensors')


def test_an_adapter_of_another_architecture_names_both(
    nothing_is_built: None, adapter: Path, base_file: Path
) -> None:
    with pytest.raises(ValueError, match=rf'was made for {MODEL} at 32 px .* but the backbone has'):
        load_backbone('vit_small_patch8_32', base_file, adapter)
    with pytest.raises(ValueError, match=r'and bands red, green, blue, but the .* bands blue, green, red:'):
        load_backbone(MODEL, base_file, adapter, bands=('blue', 'green', 'red'))


def test_a_base_of_another_architecture_takes_no_memory(
    nothing_is_built: None, adapter: Path, base_state: State, tmp_path: Path
) -> None:
    partial = {k: v for k, v in base_state.items() if not k.startswith('blocks.2.')}
    torch.save(partial, tmp_path / 'shallow.pth')
    with pytest.raises(ValueError, match=r'shallow\.pth does not match .* is missing blocks\.2\.'):
        merge_adapter(adapter, tmp_path / 'shallow.pth', tmp_path / 'merged.safetensors')
    assert not (tmp_path / 'merged.safetensors').exists()
