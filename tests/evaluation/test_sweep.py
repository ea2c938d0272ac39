"""The batched sweep does what one probe after the other would."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from explora_geo.evaluation import FeatureTable, SweepConfig, linear_sweep
from explora_geo.evaluation.sweep import BatchedLinear

Table = Callable[..., FeatureTable]


def inputs(table: FeatureTable, blocks: int, average: bool) -> torch.Tensor:
    """A probe's input as the paper words it: class tokens of n blocks, and the mean patch of the last."""
    tokens = [table.cls[:, -1 - i] for i in range(blocks)]
    return torch.cat([table.avg[:, -1], *tokens] if average else tokens, dim=1).float()


def weight_of(model: BatchedLinear, variant: int) -> torch.Tensor:
    """Weights of one variant's classifiers, shape (R, K, its features)."""
    parts = []
    for _, users, weight, _ in model.segments:
        readers = range(len(model.variants))[users]
        if variant in readers:
            by_reader = weight.T.unflatten(0, (len(readers), *model.bias.shape[1:]))
            parts.append(by_reader[readers.index(variant)])
    return torch.cat(parts, dim=-1)


def test_every_configuration_is_trained_as_it_would_be_alone(table: Table) -> None:
    train, val, test = table(50, 0), table(30, 1), table(40, 2)
    config = SweepConfig(learning_rates=(0.01, 0.3), blocks=(1, 2), epochs=3, iterations=7, batch_size=16)
    found, _ = linear_sweep(train, val, test, config)
    generator = torch.Generator().manual_seed(0)
    start = BatchedLinear(8, 3, (1, 2), 2, generator)
    orders: list[torch.Tensor] = []
    while len(orders) < 21:
        orders += torch.randperm(50, generator=generator)[:48].split(16)
    rows = iter(found)
    for variant, (blocks, average) in enumerate([(1, False), (1, True), (2, False), (2, True)]):
        for k, lr in enumerate((0.01, 0.3)):
            probe = nn.Linear(8 * (blocks + average), 3)
            with torch.no_grad():
                probe.weight.copy_(weight_of(start, variant)[k])
                probe.bias.zero_()
            optimizer = torch.optim.SGD(probe.parameters(), lr=lr * 16 / 256, momentum=0.9)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 21)
            x = inputs(train, blocks, average)
            for index in orders[:21]:
                optimizer.zero_grad()
                F.cross_entropy(probe(x[index]), train.label[index]).backward()
                optimizer.step()
                schedule.step()
            row = next(rows)
            assert (row.blocks, row.average, row.lr) == (blocks, average, lr)
            for part, accuracy in ((val, row.validation), (test, row.test)):
                hits = probe(inputs(part, blocks, average)).argmax(1) == part.label
                assert accuracy == pytest.approx(hits.float().mean().item())


def test_a_step_goes_down_the_gradients_of_autograd() -> None:
    generator = torch.Generator().manual_seed(1)
    model = BatchedLinear(4, 3, (4, 1, 2), 2, generator)
    x, y = torch.randn(10, 20), torch.arange(10) % 3
    rates = torch.tensor([0.1, 2.0])
    tensors = [model.bias, *(segment.weight for segment in model.segments)]
    before = [t.clone() for t in tensors]
    for tensor in tensors:
        tensor.requires_grad_()
    scores = model(x)
    losses = [rates[k] * F.cross_entropy(scores[:, v, k], y) for v in range(6) for k in range(2)]
    gradients = torch.autograd.grad(torch.stack(losses).sum(), tensors)
    for tensor in tensors:
        tensor.requires_grad_(False)
    model.step(x, y, rates, factor=0.5)
    for tensor, start, gradient in zip(tensors, before, gradients, strict=True):
        assert_close(tensor, start - 0.5 * gradient)


def test_the_paper_sweeps_28_configurations(table: Table) -> None:
    config = SweepConfig(epochs=1, iterations=2)
    rows, _ = linear_sweep(table(20, 0), table(9, 1), table(9, 2), config)
    assert len(rows) == len({r.setting for r in rows}) == 28
    assert config.learning_rates == (1e-4, 1e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)


def test_it_is_chosen_on_validation_and_reported_on_test(table: Table) -> None:
    train, val, test = table(90, 0, 4), table(60, 1, 4), table(60, 2, 4)
    config = SweepConfig(epochs=2, iterations=40)
    rows, choice = linear_sweep(train, val, test, config)
    best = max(rows, key=lambda row: row.validation)
    assert (choice.validation, choice.setting) == (best.validation, best.setting)
    assert best.test > 0.9 and np.mean(choice.hits) == pytest.approx(best.test)
    # Test labels turned round must not change the choice.
    _, turned = linear_sweep(train, val, test._replace(label=(test.label + 1) % 3), config)
    assert turned.setting == choice.setting and np.mean(turned.hits) < 0.1


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        ({'blocks': (5,)}, 'reads the last 5 blocks, but the features contain 4'),
        ({'blocks': ()}, 'blocks must be at least 1'),
        ({'learning_rates': (0.0,)}, 'learning_rates must be positive'),
        ({'epochs': 0}, 'epochs must be at least 1'),
    ],
)
def test_what_cannot_be_swept_is_refused(table: Table, changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        linear_sweep(table(9, 0), table(9, 1), table(9, 2), SweepConfig(**changes))  # type: ignore[arg-type]


def test_one_class_is_no_probe(table: Table) -> None:
    with pytest.raises(ValueError, match='at least two classes'):
        linear_sweep(table(9, 0, classes=1), table(9, 1), table(9, 2))
