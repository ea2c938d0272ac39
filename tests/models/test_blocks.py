"""Attention of blocks: timm's numbers, and the precision in which a CPU goes back through it."""

from typing import Any

import timm.layers
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from explora_geo.models.blocks import Attention, scores


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
    told = scores(mine, x, None, queries=7)
    assert_close(told.sum(-1), torch.ones(2, 3, 7))
    seen = told @ mine.heads(x)[2]
    assert_close(mine.proj(seen.transpose(1, 2).flatten(2)), mine(x))


class _Dtypes(TorchDispatchMode):
    """Precisions in which fused attention ran."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if 'attention' in str(func):
            self.seen.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


def test_a_cpu_goes_back_through_attention_in_float32() -> None:
    torch.manual_seed(0)
    attention, x = Attention(48, 3), torch.randn(2, 7, 48)
    exact = attention(x)
    with _Dtypes() as during, torch.autocast('cpu', torch.bfloat16):
        found = attention(x)
        found.float().square().sum().backward()
    assert during.seen == [torch.float32] * 2 and found.dtype == torch.bfloat16
    assert_close(found.float(), exact, atol=0.02, rtol=0.02)
    assert attention.qkv.weight.grad is not None
    with _Dtypes() as before, torch.autocast('cpu', torch.bfloat16), torch.no_grad():
        attention(x)
    assert before.seen == [torch.bfloat16]  # forward alone it is as fast
