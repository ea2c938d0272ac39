"""Frozen layers compute what plain ones do, and are converted to a lower precision once."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from explora_geo.adaptation import ExPLoRAConfig, explora, hold_frozen, merge_lora
from explora_geo.adaptation.frozen import FrozenLinear, convert_each_time
from explora_geo.models import create_vit


@pytest.fixture
def layer() -> FrozenLinear:
    plain = nn.Linear(8, 16)
    plain.requires_grad_(False)
    return FrozenLinear(plain)


class Conversions(TorchDispatchMode):
    """Counts conversions of matrices of a shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ == '_to_copy' and args[0].shape == self.shape:
            self.count += 1
        return func(*args, **(kwargs or {}))


def run(layer: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = layer(x)
    y.float().square().sum().backward()
    assert x.grad is not None
    return y, x.grad


def test_output_and_gradient_are_those_of_a_plain_layer(layer: FrozenLinear) -> None:
    plain, x = layer.merged(), torch.randn(4, 8)
    assert type(plain) is nn.Linear
    for ours, theirs in zip(run(layer, x), run(plain, x), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(layer(x), plain(x)) and layer(x).dtype == torch.float32


def test_the_matrix_is_converted_once_also_for_a_teacher_that_shares_it(layer: FrozenLinear) -> None:
    teacher = copy.deepcopy(layer, {id(p): p for p in layer.parameters()})
    with Conversions((16, 8)) as seen:
        for _ in range(3):
            run(layer, torch.randn(4, 8))
            run(teacher, torch.randn(4, 8))
    assert teacher.weight is layer.weight and seen.count == 1


def test_a_copy_of_inference_serves_training(layer: FrozenLinear) -> None:
    with torch.inference_mode(), torch.autocast('cpu', dtype=torch.bfloat16):
        layer(torch.randn(4, 8))
    run(layer, torch.randn(4, 8))


def test_new_numbers_are_used(layer: FrozenLinear) -> None:
    x = torch.randn(4, 8)
    run(layer, x)
    layer.load_state_dict({k: torch.randn_like(v) for k, v in layer.state_dict().items()})
    assert torch.equal(run(layer, x)[0], run(layer.merged(), x)[0])


def test_held_in_bfloat16_alone_it_computes_what_autocast_did(layer: FrozenLinear) -> None:
    x = torch.randn(4, 8)
    with torch.autocast('cpu', dtype=torch.bfloat16):  # leaves a copy behind
        layer(x)
    expected, rounded = run(layer, x), layer.weight.detach().bfloat16().float()
    teacher = copy.deepcopy(layer, {id(p): p for p in layer.parameters()})
    assert hold_frozen(nn.ModuleList([layer, teacher]), torch.bfloat16) == 2 * 16 * 8
    assert not vars(layer.weight) and teacher.weight.dtype == torch.bfloat16 == layer.weight.dtype
    for ours, theirs in zip(run(layer, x), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert layer.bias.dtype == torch.float32 == layer.merged().weight.dtype
    assert torch.equal(layer(x), torch.nn.functional.linear(x, rounded, layer.bias))
    assert torch.equal(layer(x), layer.merged()(x))


@pytest.mark.group(name='long')
def test_an_adapted_model_held_in_bfloat16_trains_alike_and_compiles(small_names: None) -> None:
    torch.compiler.reset()
    vit = explora(create_vit('vit_small_patch8_32'), ExPLoRAConfig.parse('[L]-r4'))
    with torch.no_grad():
        for name, value in vit.named_parameters():
            if 'lora_b' in name:
                value.normal_(std=0.02)
    image, found = torch.randn(2, 3, 32, 32), []
    for held in (False, True):
        if held:
            assert hold_frozen(vit, torch.bfloat16) > 0
        for module in (vit, torch.compile(vit, fullgraph=True, backend='aot_eager')):
            vit.zero_grad()
            with torch.autocast('cpu', dtype=torch.bfloat16):
                loss = module(image).patches.float().square().mean()
            loss.backward()
            found.append({n: p.grad.clone() for n, p in vit.named_parameters() if p.grad is not None})
    plain, compiled, *lean = found
    assert all(torch.equal(v, lean[0][k]) for k, v in plain.items()) and plain.keys() == lean[0].keys()
    assert all(torch.equal(v, lean[1][k]) for k, v in compiled.items())


def test_what_trains_is_a_plain_layer_and_merging_leaves_only_those(small_names: None) -> None:
    vit = create_vit('vit_tiny_patch8_32')
    before = {k: v.clone() for k, v in vit.state_dict().items()}
    explora(vit, ExPLoRAConfig.parse('[L]-r4'))
    kinds = [{type(m) for m in block.modules() if isinstance(m, nn.Linear)} for block in vit.blocks]
    assert kinds[-1] == {nn.Linear} and nn.Linear not in kinds[0]
    merged = merge_lora(vit)
    assert {type(m) for m in merged.modules() if isinstance(m, nn.Linear)} == {nn.Linear}
    assert merged.state_dict().keys() == before.keys()


def test_what_trains_is_not_held_in_low_precision(small_names: None) -> None:
    config = ExPLoRAConfig(unfrozen_blocks=(-1,), rank=4, extra=('blocks.0.attn.qkv',))
    vit = explora(create_vit('vit_tiny_patch8_32'), config)
    assert hold_frozen(vit, torch.bfloat16) > 0
    assert {p.dtype for p in vit.parameters() if p.requires_grad} == {torch.float32}


def test_without_copies_it_computes_the_same_and_keeps_none(layer: FrozenLinear) -> None:
    x = torch.randn(4, 8)
    expected = run(layer, x)
    layer.load_state_dict(layer.state_dict())
    fresh = FrozenLinear(layer.merged())
    convert_each_time(fresh)
    for ours, theirs in zip(run(fresh, x), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert not vars(fresh.weight) and vars(layer.weight)
