"""No planned row can end for its shapes: rows are rehearsed on tiny files of their data sets' formats."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.tables.adalora import RANKS, add_adalora
from benchmarks.tables.jobs import build_job, why_not
from benchmarks.tables.rehearsal import rehearse
from benchmarks.tables.rows import get_table, read_tables
from benchmarks.tables.runner import run_job
from benchmarks.tables.scales import Scale, get_scale
from benchmarks.tables.stages import Store
from explora_geo.models import ViT, create_vit

SMALL_SCALES = ('smoke', 'demo', 'small')


def jobs_of(table: str, scale: Scale) -> list:
    one = get_table(table)
    return [build_job(one, row, scale) for row in one.rows.values() if not why_not(one, row, scale)]


@pytest.mark.slow
@pytest.mark.parametrize('table', [t for t in read_tables() if t not in ('3m', '4', 'labels')])
def test_every_row_of_the_paper_runs_from_its_files_to_its_score(table: str, small_names: None) -> None:
    jobs = jobs_of(table, get_scale('paper'))
    assert jobs and rehearse(jobs) == {}


def test_camelyon_at_its_own_size_is_refused_before_it_costs_anything(small_names: None) -> None:
    scale = get_scale('paper')
    jobs = [j for j in jobs_of('4', scale) if j.row.tuning == 'probe']
    assert rehearse(jobs) == {}
    data = scale.data['camelyon17']
    wrong = replace(data, init_args={**data.init_args, 'image_size': 96})
    failed = rehearse(jobs_of('4', replace(scale, data={**scale.data, 'camelyon17': wrong})))
    assert set(failed) == {'dinov2_probe', 'dinov2_lora', 'd_l_r32_probe', 'd_l_r32_lora'}
    assert 'ValueError' in failed['dinov2_probe']


@pytest.mark.slow
@pytest.mark.parametrize('name', SMALL_SCALES)
def test_rows_of_the_other_scales_are_rehearsed_without_their_data(name: str, small_names: None) -> None:
    assert rehearse(jobs_of('3', get_scale(name))) == {}


def test_adalora_trains_the_printed_parameters_and_changes_nothing_at_first(
    build_vit: Callable[..., ViT],
) -> None:
    with torch.device('meta'):
        large = create_vit('vit_large_patch14_dinov2', img_size=224)
        add_adalora(large)
    # 48 matrices of A, B and E at rank 12: the printed 1.2M.
    count = sum(p.numel() for p in large.parameters() if p.requires_grad)
    assert count == 48 * (2 * 12 * 1024 + 12) == 1_180_224
    vit, image = build_vit().eval(), torch.randn(2, 3, 32, 32)
    before = vit(image).patches
    add_adalora(vit)
    assert torch.allclose(vit(image).patches, before, atol=1e-5)


def test_adalora_ends_at_its_mean_rank(tiny: Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = get_table('1')
    assert why_not(table, table.rows['dinov2_adalora'], tiny) == 'no tuning adalora at the scale tiny'
    scale = replace(tiny, tune={**tiny.tune, 'adalora': replace(tiny.tune['lora'], steps=4)}, curve=0)
    from benchmarks.tables.adalora import AdaLoRATask

    ranks = []
    step = AdaLoRATask.optimizer_step

    def noted(self: AdaLoRATask, *args: object, **kwargs: object) -> None:
        step(self, *args, **kwargs)
        values = [p for n, p in self.model.backbone.named_parameters() if 'lora_E' in n]
        ranks.append(sum(int((v != 0).sum()) for v in values) / len(values))

    irregular, weighed = AdaLoRATask.irregularity, []
    monkeypatch.setattr(
        AdaLoRATask, 'irregularity', lambda self: weighed.append(irregular(self)) or weighed[-1]
    )
    monkeypatch.setattr(AdaLoRATask, 'optimizer_step', noted)
    record = run_job(build_job(table, table.rows['dinov2_adalora'], scale), Store(tmp_path / 'store'))
    assert ranks[-1] == RANKS[1] and ranks[0] > ranks[-1] and len(ranks) == 4
    assert len(weighed) == 4 and all(value.requires_grad for value in weighed)  # in training alone
    assert record['tuned_parameters'] == 6 * (2 * 12 * 32 + 12)


def test_the_table_of_carbon_reads_the_stages_of_other_tables(
    tiny: Scale, fmow_sentinel: Path, tmp_path: Path, metered: None
) -> None:
    data = get_scale('paper').data['fmow_sentinel']
    small = {'image_size': 32, 'num_workers': 0, 'root': str(fmow_sentinel)}
    data = replace(data, init_args={**data.init_args, **small})
    scale = replace(tiny, data={'fmow_sentinel': data}, curve=0)
    store, ran = Store(tmp_path / 'store'), []
    for name, row in (('5', 'm_ends_r32'), ('11', 'm_sentinel')):
        table = get_table(name)
        ran.append(run_job(build_job(table, replace(table.rows[row], model=''), scale), store))
    assert ran[1]['stages'] == {k: ran[0]['stages'][k] for k in ('source', 'adapted')}
    assert ran[1]['value'] == ran[0]['energy']['pretrain_kg'] > 0
