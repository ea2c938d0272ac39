"""Finished arms become rows of the ablation, and stay as they are."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.arms.config import read_arms
from benchmarks.paper import records
from benchmarks.paper.arms_rows import import_arms, match
from benchmarks.paper.rows import get_table
from benchmarks.paper.scales import Scale, get_scale

CONF = Path(__file__).parents[3] / 'benchmarks' / 'conf'


@pytest.fixture
def results(tmp_path: Path) -> Path:
    lines = []
    for name in ('frozen source', 'ExPLoRA [L]-r32'):
        for seed in range(1 if name == 'frozen source' else 2):
            line = {
                'name': name,
                'seed': seed,
                'scores': {'logistic, 25': 0.5, 'logistic, all': 0.8, 'knn, all': 0.7},
            }
            if seed or name != 'frozen source':
                line |= {'trainable': 100, 'seconds_per_step': 0.5, 'peak_memory': 7, 'loss': 1.0}
            lines.append({**line, 'curve': [[0, 0.4]], 'torch': '2', 'device': 'CPU, 2 threads'})
    path = tmp_path / 'arms.jsonl'
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return path


def test_the_committed_arms_are_rows_of_the_ablation() -> None:
    _, arms = read_arms(CONF / 'arms_eurosat_vit_tiny16_96.yaml')
    scale, table = get_scale('small'), get_table('3')
    found = {arm: [r.id for r in table.rows.values() if match(r, a, scale)] for arm, a in arms.items()}
    assert found == {
        'frozen source': ['source'],
        'ExPLoRA [L]-r32': ['l_r32'],
        'LoRA only': ['lora_r32'],
        'unfreezing only': ['l'],
        'full training': ['full'],
        'from scratch': ['scratch'],
    }


def test_finished_arms_are_appended_once_under_their_own_origin(results: Path, tmp_path: Path) -> None:
    config, scale, table = CONF / 'arms_eurosat_vit_tiny16_96.yaml', get_scale('small'), get_table('3')
    before, out = results.read_bytes(), tmp_path / 'out.jsonl'
    assert import_arms(config, results, table, scale, out) == 3
    assert import_arms(config, results, table, scale, out) == 0
    assert results.read_bytes() == before
    mine = replace(table, id='mine')
    assert import_arms(config, results, mine, scale, out) == 3  # another table's rows are its own
    found = records.by_row(records.read(out), '3')
    assert set(found) == {
        ('source', 'arms arms_eurosat_vit_tiny16_96'),
        ('l_r32', 'arms arms_eurosat_vit_tiny16_96'),
    }
    (source,), adapted = found.values()
    assert source['value'] == pytest.approx(80) and source['images_seen'] == 0
    assert [r['seed'] for r in adapted] == [0, 1] and adapted[0]['images_seen'] == 200 * 64
    assert adapted[0]['images_per_s'] == 128 and adapted[0]['published'] is None


def test_arms_of_another_objective_are_no_rows(results: Path, tmp_path: Path, tiny: Scale) -> None:
    out = tmp_path / 'out.jsonl'
    assert import_arms(CONF / 'arms_eurosat_vit_tiny16_96.yaml', results, get_table('3m'), tiny, out) == 0
    with pytest.raises(FileNotFoundError, match='no results of arms'):
        import_arms(CONF / 'arms_eurosat_vit_tiny16_96.yaml', tmp_path / 'none', get_table('3'), tiny, out)
