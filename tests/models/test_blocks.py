"""Attention of blocks: timm's numbers, and the form in which a CPU goes back through it."""

from typing import Any

import pytest
import timm.layers
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from explora_geo.models.blocks import Attention


def test_attention_and_its_gradients_are_timms() -> None:
    torch.manual_seed(0)
    mine, theirs = Attention(48, 3), timm.layers.Attention(48, 3, qkv_bias=True)
    theirs.load_state_dict(mine.state_dict())
    x = torch.randn(2, 7, 48)
    for unfused in (False, True):
        mine.fused_attn = not unfused
        found, wanted = mine(x), theirs(x)
        assert_close(found, wanted)
        for a, b in zip(
            torch.autograd.grad(found.square().sum(), list(mine.parameters())),
            torch.autograd.grad(wanted.square().sum(), list(theirs.parameters())),
            strict=True,
        ):
            assert_close(a, b)


class _Fused(TorchDispatchMode):
    """Counts calls of fused attention."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 'attention' in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ('bf16', 'learns', 'fused', 'calls'),
    # Forward alone, and in float32, a CPU's fused attention is the faster one.
    [(True, True, None, 0), (True, False, None, 1), (False, True, None, 2), (True, True, True, 2)],
)
def test_a_cpu_goes_back_through_bfloat16_without_fused_attention(
    bf16: bool, learns: bool, fused: bool | None, calls: int
) -> None:
    torch.manual_seed(0)
    attention, x = Attention(48, 3), torch.randn(2, 7, 48)
    attention.fused_attn = fused
    exact = attention(x)
    with (
        _Fused() as during,
        torch.autocast('cpu', torch.bfloat16, enabled=bf16),
        torch.set_grad_enabled(learns),
    ):
        found = attention(x)
        if learns:
            found.float().square().sum().backward()
    assert during.calls == calls
    assert_close(found.float(), exact, atol=0.02, rtol=0.02)
