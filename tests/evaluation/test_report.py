"""Reports of probes."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from explora_geo.evaluation import FeatureTable, ProbeProtocol, SweepConfig, run_probes
from explora_geo.evaluation.budgets import Budget
from explora_geo.evaluation.probes import STRENGTHS
from explora_geo.evaluation.report import write_reports

ABOUT = {
    'name': 'ViT',
    'dataset': 'tiles',
    'bands': ['red', 'green', 'blue'],
    'image_size': 32,
    'feature_dim': 8,
    'images': {'train': 60, 'val': 30, 'test': 30},
    'skipped': ['a.jpg: torn'],
}


@pytest.fixture
def folder(table: Callable[..., FeatureTable], tmp_path: Path) -> Path:
    protocol = ProbeProtocol(
        budgets=(Budget.parse('10%'), Budget()), seeds=2, sweep=SweepConfig(epochs=1, iterations=9)
    )
    outcome = run_probes(table(60, 0), table(30, 1), table(30, 2), protocol)
    write_reports(tmp_path / 'out', outcome, protocol, ABOUT)
    return tmp_path / 'out'


def test_all_reports_say_the_same(folder: Path) -> None:
    content = json.loads((folder / 'probe.json').read_text())
    assert [len(content['scores']), len(content['sweep'])] == [6, 28]
    rows = list(csv.DictReader((folder / 'probe.csv').open()))
    assert len(rows) == 3 * 2 + 3
    first = content['scores'][0]
    assert [float(r['test_accuracy']) for r in rows[:2]] == pytest.approx(first['accuracies'], abs=1e-6)
    text = (folder / 'probe.md').read_text()
    assert f'{100 * first["mean"]:.2f}' in text and 'a.jpg: torn' in text
    assert Image.open(folder / 'probe.png').width > 500


def test_torchgeo_bench_rows_have_its_columns_and_names(folder: Path) -> None:
    rows = list(csv.DictReader((folder / 'torchgeo_bench.csv').open()))
    assert (
        list(rows[0])[:12]
        == (
            'dataset method metric_name metric_value ci_lower ci_upper feature_dim best_c best_lr '
            'best_batch_size n_train n_val'
        ).split()
    )
    assert [r['method'] for r in rows[:3]] == ['linear_sgd', 'linear', 'knn5']
    assert [r['partition'] for r in rows] == ['0.10x_train'] * 3 + ['default'] * 3
    assert float(rows[0]['best_lr']) in (1e-4, 1e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
    assert float(rows[1]['best_c']) in STRENGTHS and rows[1]['best_lr'] == ''
    assert all(r['bands'] == 'rgb' and r['metric_name'] == 'accuracy' for r in rows)
