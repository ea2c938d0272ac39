"""LoRA on Q and V: nothing changes at first, K never does, and PEFT computes the same."""

import copy
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from explora_geo.adaptation import ExPLoRAConfig, LoRALinear, explora, hold_frozen, merge_lora
from explora_geo.models import ViT

Build = Callable[..., ViT]
ALL = ('q', 'k', 'v', 'proj', 'fc1', 'fc2')


def fill(model: nn.Module) -> None:
    """Give every B random numbers, as after training."""
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, LoRALinear):
                for b in layer.lora_b.values():
                    b.normal_(std=0.3)


class SplitAttention(nn.Module):
    """Attention with separate Q, K and V, for PEFT to find."""

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        self.num_heads = fused.num_heads
        weights, biases = fused.qkv.weight.chunk(3), fused.qkv.bias.chunk(3)
        for name, weight, bias in zip('qkv', weights, biases, strict=True):
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layer.weight, layer.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
            setattr(self, name, layer)
        self.proj = copy.deepcopy(fused.proj)

    def forward(self, x: Tensor, **kwargs: object) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize('alpha', [None, 1.0, 6.0])
def test_outputs_and_gradients_are_pefts_on_split_q_k_v(
    build_vit: Build, images: Tensor, alpha: float | None
) -> None:
    rank = 4
    ours = build_vit(init_values=0.5)
    theirs = copy.deepcopy(ours)
    for block in theirs.blocks:
        block.attn = SplitAttention(block.attn)
    settings = LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=['q', 'v'])
    inject_adapter_in_model(settings, theirs)
    explora(ours, ExPLoRAConfig(unfrozen_blocks=(), rank=rank, alpha=alpha))
    fill(ours)
    pairs = []
    with torch.no_grad():
        for mine, other in zip(ours.blocks, theirs.blocks, strict=True):
            for name in 'qv':
                layer = getattr(other.attn, name)
                pairs.append((mine.attn.qkv.lora_a[name], layer.lora_A['default'].weight))
                pairs.append((mine.attn.qkv.lora_b[name], layer.lora_B['default'].weight))
    with torch.no_grad():
        for mine, other in pairs:
            assert mine.shape == other.shape
            other.copy_(mine)
    outputs = []
    for model in (ours, theirs):
        features = model(images)
        (features.cls.square().mean() + features.patches.pow(3).mean()).backward()
        outputs.append(torch.cat([features.cls, features.patches.flatten(1)], dim=1))
    assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(outputs[0], outputs[0][:1], atol=1e-3)
    for mine, other in pairs:
        assert mine.grad.abs().max() > 0
        assert_close(mine.grad, other.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize('targets', [('q', 'v'), ALL])
def test_the_output_does_not_change_at_first(
    build_vit: Build, images: Tensor, targets: tuple[str, ...]
) -> None:
    vit = build_vit().eval()
    before = vit(images)
    explora(vit, ExPLoRAConfig(rank=8, targets=targets))
    after = vit(images)
    assert torch.equal(before.cls, after.cls) and torch.equal(before.patches, after.patches)


@pytest.mark.parametrize('targets', [('q', 'v'), ('k',), ALL])
@torch.no_grad()
def test_merged_and_unmerged_compute_the_same(
    build_vit: Build, images: Tensor, targets: tuple[str, ...]
) -> None:
    vit = build_vit().eval()
    explora(vit, ExPLoRAConfig(rank=4, alpha=2, targets=targets))
    before = vit(images)
    fill(vit)
    unmerged = vit(images)
    keys = [k for k in vit.state_dict() if 'lora' not in k]
    merge_lora(vit)
    merged = vit(images)
    assert not torch.allclose(before.cls, unmerged.cls, atol=1e-2)
    assert_close(merged.cls, unmerged.cls, atol=1e-5, rtol=0)
    assert_close(merged.patches, unmerged.patches, atol=1e-5, rtol=0)
    assert list(vit.state_dict()) == keys
    assert not any(isinstance(m, LoRALinear) for m in vit.modules())


def test_base_keys_stay_and_plain_weights_load(build_vit: Build) -> None:
    vit = build_vit()
    plain = {k: v.clone() for k, v in vit.state_dict().items()}
    explora(vit, ExPLoRAConfig(rank=2, targets=ALL))
    adapted = vit.state_dict()
    assert [k for k in adapted if 'lora_' not in k] == list(plain)
    assert all(torch.equal(adapted[k], v) for k, v in plain.items())
    loaded = vit.load_state_dict(plain, strict=False)
    assert not loaded.unexpected_keys and all('lora_' in k for k in loaded.missing_keys)


def test_the_update_is_b_times_a_scaled_on_its_own_rows() -> None:
    base = nn.Linear(5, 12)
    layer = LoRALinear(base, {'q': (0, 4), 'v': (8, 12)}, rank=2, alpha=6)
    fill(layer)
    delta = layer.delta()
    assert_close(delta[:4], 3 * layer.lora_b['q'] @ layer.lora_a['q'])
    assert_close(delta[8:], 3 * layer.lora_b['v'] @ layer.lora_a['v'])
    assert torch.equal(delta[4:8], torch.zeros(4, 5))
    assert layer.weight is base.weight and layer.bias is base.bias
    x = torch.randn(3, 7, 5)
    assert_close(layer(x), F.linear(x, base.weight + delta, base.bias))


def test_a_layer_without_bias_merges() -> None:
    layer = LoRALinear(nn.Linear(4, 6, bias=False), {'all': (0, 6)}, rank=1, alpha=1)
    fill(layer)
    x = torch.randn(2, 4)
    assert_close(layer.merged()(x), layer(x))


def test_dropout_acts_on_the_update_in_training_only() -> None:
    layer = LoRALinear(nn.Linear(64, 8), {'all': (0, 8)}, rank=2, alpha=2, dropout=0.5)
    x = torch.randn(4, 64)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))  # B is zero: the base is whole
    fill(layer)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert_close(layer(x), layer.merged()(x))


def test_new_matrices_have_the_type_of_the_base() -> None:
    layer = LoRALinear(nn.Linear(4, 6).bfloat16(), {'all': (0, 6)}, rank=1, alpha=1)
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    assert layer.merged().weight.dtype == torch.bfloat16


@pytest.mark.parametrize('precision', [torch.bfloat16, torch.float16])
def test_mixed_precision_runs_and_stays_close(precision: torch.dtype) -> None:
    layer = LoRALinear(nn.Linear(16, 24), {'q': (0, 8), 'v': (16, 24)}, rank=2, alpha=2)
    fill(layer)
    x = torch.randn(4, 16)
    with torch.autocast('cpu', precision):
        y = layer(x)
    assert y.dtype == precision
    assert_close(y.float(), layer(x), atol=0.1, rtol=0.1)
    y.float().sum().backward()
    assert all(p.grad is not None for p in layer.lora_b.values())


@pytest.mark.parametrize('alpha', [2.0, 6.0])
@pytest.mark.parametrize('slices', [{'q': (0, 4), 'v': (8, 12)}, {'all': (0, 12)}])
def test_gradients_are_those_of_finite_differences(slices: dict[str, tuple[int, int]], alpha: float) -> None:
    layer = LoRALinear(nn.Linear(5, 12).double(), slices, rank=2, alpha=alpha)
    layer.weight.requires_grad_(False), layer.bias.requires_grad_(False)
    fill(layer)
    names = [name for name, p in layer.named_parameters() if p.requires_grad]

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), x)

    x = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, *(layer.get_parameter(name) for name in names)))
    layer(x.detach()).sum().backward()  # the first layer of a frozen model
    assert len(names) == 2 * len(slices) and all(layer.get_parameter(name).grad is not None for name in names)


def test_recorded_for_a_compiler_it_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    base = nn.Linear(16, 24).requires_grad_(False)
    layer = LoRALinear(base, {'q': (0, 8), 'v': (16, 24)}, rank=4, alpha=8)
    fill(layer)
    found = []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, 'is_compiling', lambda compiling=compiling: compiling)
        x = torch.randn(6, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
        y = layer(x)
        layer.zero_grad()
        y.square().sum().backward()
        updates = [*layer.lora_a.values(), *layer.lora_b.values()]
        found.append([y, x.grad, *(p.grad for p in updates)])
        nodes = type(y.grad_fn).__name__
    assert nodes != '_UpdateBackward'  # the last one was made of single operations
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_bias_that_trains_beside_the_updates_gets_its_gradient() -> None:
    layer = LoRALinear(nn.Linear(5, 12), {'q': (0, 4), 'v': (8, 12)}, rank=2, alpha=2)
    layer.weight.requires_grad_(False)
    layer(torch.randn(7, 5)).sum().backward()
    assert_close(layer.bias.grad, torch.full((12,), 7.0))
    assert all(p.grad is not None for p in layer.lora_b.values())


@pytest.mark.parametrize('tokens', [3, 100])
def test_without_gradients_folding_the_update_in_changes_nothing(build_vit: Build, tokens: int) -> None:
    vit = explora(build_vit(), ExPLoRAConfig.parse('[]-r4', targets=ALL, alpha=2)).eval()
    fill(vit)
    for layer in (m for m in vit.modules() if isinstance(m, LoRALinear)):
        x = torch.randn(tokens, layer.in_features)
        with torch.no_grad():
            folded = layer(x)
        assert_close(folded, layer(x), atol=1e-5, rtol=1e-5)


def test_dropout_of_the_update_is_kept_without_gradients(build_vit: Build) -> None:
    vit = explora(build_vit(), ExPLoRAConfig.parse('[]-r4', dropout=0.5)).train()
    fill(vit)
    layer = vit.blocks[0].attn.qkv
    x = torch.randn(100, 32)
    with torch.no_grad():
        assert not torch.equal(layer(x), layer(x))


def test_a_weight_held_in_bfloat16_does_not_swallow_small_updates(build_vit: Build) -> None:
    vit = explora(build_vit(), ExPLoRAConfig.parse('[]-r4')).eval()
    layer = vit.blocks[0].attn.qkv
    x = torch.randn(100, 32)
    hold_frozen(vit, torch.bfloat16)
    with torch.no_grad():
        before = layer(x)
        for b in layer.lora_b.values():
            b.fill_(1e-5)  # less than half a digit of most weights
        assert layer.delta().abs().max() < 1e-3 and layer.delta().dtype == torch.float32
        assert_close(layer(x) - before, x @ layer.delta().T, atol=1e-6, rtol=0)
        assert_close(layer.merged()(x), layer(x), atol=1e-5, rtol=1e-5)
        assert (layer(x)[:, :32] != before[:, :32]).any(0).all()
