"""Projection heads of self-distillation."""

import copy

import pytest
import torch
from lightly.models.modules import DINOProjectionHead
from torch.testing import assert_close

from explora_geo.models.heads import HeadConfig, ProjectionHead

SMALL = HeadConfig(prototypes=12, hidden_dim=16, bottleneck_dim=8)


@pytest.mark.filterwarnings('ignore:.*weight_norm:FutureWarning')
def test_logits_are_those_of_lightlys_head() -> None:
    theirs = DINOProjectionHead(32, 16, 8, 12)
    ours = ProjectionHead(32, SMALL)
    ours.load_state_dict({k.replace('layers.', 'mlp.'): v for k, v in theirs.state_dict().items()})
    x = torch.randn(5, 32)
    assert_close(ours(x), theirs(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize('layers', [1, 2, 4])
def test_a_head_has_as_many_layers_as_asked_for(layers: int) -> None:
    head = ProjectionHead(32, HeadConfig(12, 16, 8, layers))
    assert sum(isinstance(m, torch.nn.Linear) for m in head.modules()) == layers
    assert head(torch.randn(2, 3, 32)).shape == (2, 3, 12)


def test_logits_are_cosines_whatever_the_length_of_a_token() -> None:
    head = ProjectionHead(32, SMALL)
    with torch.no_grad():
        head.last_layer.weight_v.mul_(7)
    logits = head(100 * torch.randn(50, 32))
    assert logits.abs().max() <= 1 + 1e-6


def test_a_head_is_copied_after_it_was_used() -> None:
    head = ProjectionHead(32, SMALL)
    head(torch.randn(4, 32)).sum().backward()
    assert torch.equal(copy.deepcopy(head).mlp[0].weight, head.mlp[0].weight)


def test_the_gain_trains_if_asked_for() -> None:
    trained = ProjectionHead(32, HeadConfig(12, 16, 8, train_gain=True))
    trained(torch.randn(4, 32)).sum().backward()
    assert trained.last_layer.weight_g.grad.abs().min() > 0
    assert [n for n, p in ProjectionHead(32, SMALL).named_parameters() if not p.requires_grad] == [
        'last_layer.weight_g'
    ]


@pytest.mark.parametrize(
    'size', [{'prototypes': 1}, {'hidden_dim': 0}, {'bottleneck_dim': 0}, {'num_layers': 0}], ids=str
)
def test_sizes_out_of_range_are_refused(size: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f'{next(iter(size))} of a head must be at least'):
        HeadConfig(**size)


@pytest.mark.parametrize('bf16', [False, True])
def test_two_calls_with_the_same_prototypes_learn_what_one_call_learns(bf16: bool) -> None:
    head = ProjectionHead(32, SMALL)
    x, learned = torch.randn(10, 32), []
    for calls in (1, 2):
        head.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=bf16):
            weight = head.last_layer.weight() if calls == 2 else None
            logits = torch.cat([head(part, weight) for part in x.chunk(calls)])
        assert logits.dtype == (torch.bfloat16 if bf16 else torch.float32)
        logits.float().square().mean().backward()
        grads = {n: p.grad.clone() for n, p in head.named_parameters() if p.grad is not None}
        learned.append({'logits': logits.detach(), **grads})
    assert_close(learned[1], learned[0], rtol=0.05 if bf16 else 1e-4, atol=0.02 if bf16 else 1e-5)
    assert 'last_layer.weight_v' in learned[1]
