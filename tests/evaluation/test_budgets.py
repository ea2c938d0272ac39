"""Label budgets."""

import pytest
import torch

from explora_geo.evaluation.budgets import Budget, hold_out

LABELS = torch.tensor([0] * 100 + [1] * 50 + [2] * 3)


def test_a_tenth_of_every_class_is_held_out() -> None:
    train, val = hold_out(LABELS)
    assert LABELS[val].bincount().tolist() == [10, 5, 1] and LABELS[train].bincount().tolist() == [90, 45, 2]
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(len(LABELS)))


@pytest.mark.parametrize(
    ('text', 'expected', 'partition'),
    [
        ('10%', [10, 5, 1], '0.10x_train'),
        ('1%', [1, 1, 1], '0.01x_train'),
        ('2.5%', [2, 1, 1], '0.025x_train'),
        ('5', [5, 5, 3], '5_per_class'),
        ('all', [100, 50, 3], 'default'),
    ],
)
def test_a_budget_draws_the_same_share_or_number_of_each_class(
    text: str, expected: list[int], partition: str
) -> None:
    budget = Budget.parse(text)
    drawn = budget.draw(LABELS, seed=0)
    assert LABELS[drawn].bincount().tolist() == expected
    assert len(drawn.unique()) == len(drawn)
    assert str(budget) == text and budget.partition == partition
    assert torch.equal(drawn, budget.draw(LABELS, seed=0))
    assert budget.full or not torch.equal(drawn, budget.draw(LABELS, seed=1))


@pytest.mark.parametrize('text', ['', '0', '0%', '101%', 'some', '-5', '1.5'])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match='cannot read the label budget'):
        Budget.parse(text)
