"""Rows at the tiny scale on the paper's data modules, where what trains or is counted depends on the data."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.tables.jobs import build_job
from benchmarks.tables.rows import get_table
from benchmarks.tables.runner import run_job
from benchmarks.tables.scales import Scale, get_scale
from benchmarks.tables.stages import Store

SMALL = {'image_size': 32, 'num_workers': 0}
DATA = Path(__file__).parents[2] / 'data'


@pytest.fixture
def run(tiny: Scale, tmp_path: Path) -> Callable[..., dict]:
    """Run a row at the tiny scale, but on the paper's data module, task and regularisation."""

    def ran(name: str, row: str, root: Path, source: dict | None = None, **arguments: object) -> dict:
        table = get_table(name)
        data = get_scale('paper').data[table.dataset]
        data = replace(data, init_args={**data.init_args, **SMALL, 'root': str(root), **arguments})
        sources = {k: replace(s, **(source or {})) for k, s in tiny.sources.items()}
        every = {table.dataset: data, table.pretrain_dataset or table.dataset: data}
        regular = {k: t.regularisation for k, t in get_scale('paper').tune.items()}
        tune = {k: replace(t, regularisation=regular[k]) for k, t in tiny.tune.items()}
        scale = replace(tiny, data={**tiny.data, **every}, sources=sources, tune=tune, curve=0)
        job = build_job(table, replace(table.rows[row], model=''), scale)
        return run_job(job, Store(tmp_path / 'store'))

    return ran


@pytest.mark.parametrize('row', ['m_ends_r32', 'mae_lora'])
def test_groups_of_bands_start_anew_and_train(
    row: str, run: Callable[..., dict], fmow_sentinel: Path
) -> None:
    record = run('5', row, fmow_sentinel)
    assert 0 <= record['value'] <= 100
    # LoRA-r8 alone on three blocks of width 32 is 3,072; the embeddings train where nothing was pre-trained.
    assert (record['tuned_parameters'] == 3072) is (row == 'm_ends_r32')


def test_eurosat_with_the_model_of_another_data_set(run: Callable[..., dict], tmp_path: Path) -> None:
    names = sorted(p.stem for p in (DATA / 'eurosat_ms').glob('*/*.tif'))
    split = tmp_path / 'split.json'
    split.write_text(json.dumps({'train': names[::4], 'test': names[1::12]}))
    record = run('7', 'm_ends_r32', DATA / 'eurosat_ms', split_file=str(split))
    assert record['images']['test'] == 10 and record['dataset'] == 'eurosat_ms'


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
