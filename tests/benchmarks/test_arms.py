"""Arms start from one source, are measured alike and never run twice."""

import json
from pathlib import Path

import pytest

from benchmarks.arms import run
from benchmarks.arms.config import read_arms

CONFIG = """
setting:
  model: vit_tiny_patch8_32
  weights: {weights}
  train: {tiles}
  test: {tiles}
  image_size: 32
  seeds: 2
  budgets: [2, all]
  label_seeds: 2
  every: 2
defaults:
  objective: DINOv2
  adaptation: D-ExPLoRA-[L]-r4
  base_lr: 0.001
  lr_scaling: none
  steps: 4
  batch_size: 8
  arguments:
    head: {{prototypes: 24, hidden_dim: 16, bottleneck_dim: 8}}
    views: {{global_size: 32, local_size: 16}}
arms:
  frozen source: frozen
  ExPLoRA: {{}}
  from scratch: {{adaptation: full, weights: null}}
"""


@pytest.fixture
def config(base_file: Path, tiles: Path, tmp_path: Path) -> Path:
    path = tmp_path / 'arms.yaml'
    path.write_text(CONFIG.format(weights=base_file, tiles=tiles))
    return path


def test_arms_are_read_over_defaults(config: Path) -> None:
    setting, arms = read_arms(config)
    assert setting.budgets == ('2', 'all') and list(arms) == ['frozen source', 'ExPLoRA', 'from scratch']
    assert arms['frozen source'].recipe is None
    adapted, scratch = arms['ExPLoRA'], arms['from scratch']
    assert adapted.recipe is not None and scratch.recipe is not None
    assert adapted.recipe.name == 'D-ExPLoRA-[L]-r4' and not adapted.scratch
    assert scratch.recipe.adaptation.full and scratch.scratch and scratch.recipe.steps == 4


def test_the_table_and_the_curves_hold_every_arm_and_seed(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []

    def here(path: Path, name: str, seed: int) -> dict[str, object]:
        ran.append((name, seed))
        return run.run_arm(path, name, seed)

    monkeypatch.setattr(run, '_in_child', here)
    run.run_arms(config, tmp_path / 'out', 'ExPLoRA')
    report = run.run_arms(config, tmp_path / 'out')
    assert ran == [(n, s) for n in ('ExPLoRA',) for s in (0, 1)] + [
        ('frozen source', 0),
        ('from scratch', 0),
        ('from scratch', 1),
    ]
    rows = [json.loads(line) for line in (tmp_path / 'out' / 'arms.jsonl').read_text().splitlines()]
    by_name = {(row['name'], row['seed']): row for row in rows}
    adapted = by_name['ExPLoRA', 0]
    assert [step for step, _ in adapted['curve']] == [0, 2, 4]
    # The teacher starts as the source.
    assert adapted['curve'][0][1] == by_name['frozen source', 0]['curve'][0][1]
    assert set(adapted['scores']) == {'logistic, 2', 'logistic, all', 'knn, 2', 'knn, all'}
    assert adapted['trainable'] < by_name['from scratch', 0]['trainable']
    assert adapted['seconds_per_step'] > 0 and adapted['peak_memory'] >= 0
    lines = [line for line in report.read_text().splitlines() if line.startswith('| ')]
    assert [line.split(' | ')[0] for line in lines[1:]] == ['| frozen source', '| ExPLoRA', '| from scratch']
    assert '±' in lines[2] and '±' not in lines[1]
    assert (tmp_path / 'out' / 'arms.png').read_bytes().startswith(b'\x89PNG')


def test_an_unknown_key_is_named(config: Path) -> None:
    config.write_text(config.read_text().replace('image_size: 32', 'img_size: 32'))
    with pytest.raises(ValueError, match=r'arms\.yaml: unknown keys img_size in setting'):
        read_arms(config)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'nothing\.yaml'):
        read_arms(tmp_path / 'nothing.yaml')
