"""Costs are those of the models that would run."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.tables.cost import (
    forward_flops,
    matches,
    measured_rate,
    plan_rows,
    pretraining_cost,
    total_hours,
)
from benchmarks.tables.data import build_data
from benchmarks.tables.jobs import build_job
from benchmarks.tables.meter import describe_machine
from benchmarks.tables.rows import Table, get_table, read_tables
from benchmarks.tables.scales import Scale, Search, get_scale
from explora_geo.models import ViT

STATED = [(t, r) for t in read_tables().values() for r in t.rows.values() if r.trainable]


@pytest.mark.parametrize(
    'table',
    [
        pytest.param(t, marks=() if t.id == '1' else pytest.mark.group(name='long'), id=t.id)
        for t in read_tables().values()
    ],
)
def test_every_model_and_loader_of_the_paper_is_built_and_has_the_stated_parameters(table: Table) -> None:
    scale = get_scale('paper')
    planned = plan_rows(table, list(table.rows.values()), scale, 1e14)
    for plan in planned:
        assert plan.agrees is not False, (plan.row.id, plan.pretrain and plan.pretrain.trainable)
        if plan.reason:
            continue
        assert plan.agrees is True or not plan.row.trainable
        if plan.row.trainable:
            assert plan.pretrain is not None
        if plan.tune is not None and plan.row.tuning == 'lora':
            assert f'{plan.tune.trainable / 1e6:.3f}' == '0.786'


def test_the_table_of_parameters_is_complete() -> None:
    stated = {row.trainable for _, row in STATED}
    assert stated == {'15,710,208', '18.725M', '12.696M', '43.389M', '9.288M', '29.698M', '303.302M'}


def test_operations_are_those_that_torch_counts(build_vit: Callable[..., ViT]) -> None:
    vit = build_vit(width=32, depth=3)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for layer in vit.modules():
            if hasattr(layer, 'fused_attn'):
                layer.fused_attn = False  # type: ignore[assignment]
        vit(torch.zeros(1, 3, 32, 32))
    embedding = 2 * 16 * 32 * 3 * 8 * 8
    assert counter.get_total_flops() - embedding == forward_flops(32, 3, 17)


def test_training_costs_more_than_twice_its_forward_pass_and_full_training_most(tiny: Scale) -> None:
    table = get_table('3')
    flops = {n: pretraining_cost(build_job(table, table.rows[n], tiny)).flops for n in ('l', 'l_r32', 'full')}
    forward = 2 * forward_flops(32, 3, 17) + 8 * forward_flops(32, 3, 5)
    teacher = 2 * forward_flops(32, 3, 17)
    assert 2 * forward + teacher < flops['l'] < flops['l_r32'] < flops['full']
    assert flops['full'] == pytest.approx(3 * forward + teacher)


def test_hours_follow_from_finished_runs(tiny: Scale, record: Callable[..., dict]) -> None:
    table, rate = get_table('3'), 1e9
    (plan,) = plan_rows(table, [table.rows['l']], tiny, rate)
    assert plan.pretrain is not None
    assert plan.hours == pytest.approx(plan.pretrain.flops * 32 / rate / 3600)
    assert total_hours([plan], tiny, rate, 3) == pytest.approx(3 * plan.hours)
    searched = replace(tiny, search=Search((0.5, 1.0), 2, 1))  # two trials of two of the four steps
    assert total_hours([plan], searched, rate, 3) == pytest.approx(4 * plan.hours)
    mine = record('l', 0, 1.0, **describe_machine())
    other = record('l', 1, 1.0, hardware={'device': 'another', 'system': ''}, images_per_s=1e9)
    assert measured_rate([mine, other]) == pytest.approx(mine['flops'] / 32 * 100)
    assert measured_rate([other]) is None


def test_stated_numbers_are_exact_or_to_three_decimals() -> None:
    assert matches('15,710,208', 15_710_208) and not matches('15,710,208', 15_710_209)
    assert matches('18.725M', 18_724_864) and not matches('18.725M', 18_725_600)


def test_a_data_module_that_takes_no_such_argument_is_named(tiny: Scale) -> None:
    with pytest.raises(ValueError, match='FolderDataModule does not accept'):
        build_data(tiny.data['fmow_rgb'], folders=3)
