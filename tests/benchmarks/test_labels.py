"""The table of label budgets."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from benchmarks import labels
from benchmarks.labels import Plan, markdown, run_labels

ROOT = Path(__file__).parents[2]


@pytest.fixture
def plan(tiles: Path, base_file: Path, tmp_path: Path) -> Path:
    """A plan of two backbones, one way of tuning and two budgets on 24 tiles."""
    data = tmp_path / 'data'
    for part in ('train', 'test'):
        shutil.copytree(tiles, data / part)
    backbone = {'model': 'vit_tiny_patch8_32', 'weights': str(base_file)}
    content = {
        'data': {'root': str(data), 'image_size': 32, 'batch_size': 8, 'val_split': 0.25, 'cache': True},
        'backbones': {'source': backbone, 'again': backbone},
        'tunings': {'linear': {'optim': {'base_lr': 0.01, 'lr_scaling': 'none'}}},
        'steps': {'2': 2, 'all': 3},
        'seeds': 2,
        'trainer': {'accelerator': 'cpu'},
    }
    (tmp_path / 'plan.yaml').write_text(yaml.safe_dump(content, sort_keys=False))
    return tmp_path / 'plan.yaml'


def test_every_combination_runs_once_with_the_same_labels_for_each_backbone(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = run_labels(plan, tmp_path / 'out')
    rows = [json.loads(line) for line in (tmp_path / 'out' / 'plan.jsonl').read_text().splitlines()]
    assert len(rows) == 8 and {r['images'] for r in rows} == {6, 18}
    assert [r['steps'] for r in rows] == [2] * 4 + [3] * 4
    pairs = [(a['accuracy'], b['accuracy']) for a, b in zip(rows[::2], rows[1::2], strict=True)]
    assert all(a == b for a, b in pairs)  # the same weights, labels and seed
    assert '| 2 | 6 | linear |' in report.read_text() and 'gain of again' in report.read_text()
    monkeypatch.setattr(labels, '_run', None)
    assert run_labels(plan, tmp_path / 'out').read_text() == report.read_text()


def test_gains_are_paired_by_seed() -> None:
    rows = [
        {'backbone': b, 'tuning': 'lora', 'labels': '1%', 'seed': s, 'accuracy': a + 0.1 * s, 'images': 9}
        for b, a in (('source', 0.5), ('adapted', 0.6))
        for s in range(3)
    ]
    assert '| +10.0 ± 0.0 |' in markdown(rows, Path('plan.yaml'))


def test_the_committed_plan_is_one_and_others_are_refused(tmp_path: Path) -> None:
    plan = Plan.read(ROOT / 'benchmarks' / 'conf' / 'labels_eurosat.yaml')
    assert list(plan.tunings) == ['linear', 'lora', 'full'] and plan.seeds == 3
    with pytest.raises(FileNotFoundError, match='no plan'):
        Plan.read(tmp_path / 'missing.yaml')
    (tmp_path / 'wrong.yaml').write_text('stepps: {}')
    with pytest.raises(ValueError, match='does not fit'):
        Plan.read(tmp_path / 'wrong.yaml')
