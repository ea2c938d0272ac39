"""State dicts under any of the names that files use become the same backbone."""

import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from explora_geo.checkpoints import read_state, write_state
from explora_geo.checkpoints.convert import convert

State = dict[str, Tensor]
NAME = st.sampled_from(['model', 'backbone', 'encoder', 'student', 'module', 'net', 'vit2'])
KEYS = ('norm1.weight', 'attn.qkv.weight', 'attn.qkv.bias', 'mlp.fc1.weight', 'ls1.gamma')


@st.composite
def plain(draw: st.DrawFn) -> State:
    """A ViT of any width and depth with our names, and maybe parts of a decoder."""
    width, depth = 4 * draw(st.integers(1, 3)), draw(st.integers(1, 14))
    torch.manual_seed(draw(st.integers(0, 99)))
    state = {'cls_token': torch.randn(1, 1, width), 'pos_embed': torch.randn(1, 5, width)}
    state['patch_embed.proj.weight'] = torch.randn(width, 3, 2, 2)
    for i in range(depth):
        for key in KEYS:
            rows = 3 * width if 'qkv' in key else width
            state[f'blocks.{i}.{key}'] = (
                torch.randn(rows, width) if 'attn.qkv.w' in key else torch.randn(rows)
            )
    return state | {'norm.weight': torch.randn(width)}


def split(state: State) -> State:
    """Fused attention in three parts."""
    found: State = {}
    for key, value in state.items():
        if '.attn.qkv.' not in key:
            found[key] = value
            continue
        for part, rows in zip('qkv', value.chunk(3), strict=True):
            found[key.replace('.qkv.', f'.{part}_proj.')] = rows
    return found


def chunked(state: State) -> State:
    """Blocks in chunks of four, as in DINOv2's largest files."""
    return {
        re.sub(r'^blocks\.(\d+)\.', lambda m: f'blocks.{int(m[1]) // 4}.{m[1]}.', k): v
        for k, v in state.items()
    }


CHANGES: dict[str, Callable[[State], State]] = {'plain': dict, 'split': split, 'chunked': chunked}


@pytest.mark.parametrize('change', CHANGES)
@given(plain(), st.lists(NAME, max_size=3), st.booleans(), st.randoms(use_true_random=False))
def test_every_spelling_is_the_same_backbone(
    change: str, state: State, path: list[str], beside: bool, random: object
) -> None:
    prefix = ''.join(f'{name}.' for name in path)
    written = {f'{prefix}{k}': v for k, v in CHANGES[change](state).items()}
    if beside:
        written['head.weight'] = torch.ones(2)
    keys = list(written)
    random.shuffle(keys)  # type: ignore[attr-defined]
    found = convert({k: written[k] for k in keys})
    assert found.backbone.keys() == state.keys()
    assert all(torch.equal(found.backbone[k], v) for k, v in state.items())
    assert list(found.parts) == (['head.weight'] if beside else [])
    again = convert({**found.backbone, **found.parts})
    assert all(torch.equal(again.backbone[k], v) for k, v in state.items())


@settings(max_examples=15)
@given(
    plain(),
    st.dictionaries(
        st.text(max_size=8).filter(lambda k: k not in ('__metadata__', 'format')), st.text(max_size=20)
    ),
    st.sampled_from([torch.float16, torch.float32, torch.float64]),
)
def test_what_is_written_is_read_back_bit_by_bit(
    state: State, meta: dict[str, str], dtype: torch.dtype
) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / 'file.safetensors'
        cast = {k: v.to(dtype) for k, v in state.items()}
        write_state(path, cast, meta)
        found, read = read_state(path)
    assert read == meta and found.keys() == cast.keys()
    assert all(found[k].dtype == dtype and torch.equal(found[k], v) for k, v in cast.items())
