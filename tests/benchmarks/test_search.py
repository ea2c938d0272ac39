import json
from pathlib import Path

import pytest

from benchmarks import search
from explora_geo.demo.measure import Score

CONFIG = """
protocol: {probe_seeds: 2, tune_seeds: 0}
defaults: {objective: MAE, adaptation: 'M-ExPLoRA-[L]-r8', base_lr: 0.001, lr_scaling: none, steps: 3}
rows:
  plain:
  wide: {adaptation: 'M-ExPLoRA-[1,L]-r64', alpha: 1}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / 'rows.yaml'
    path.write_text(CONFIG)
    return path


def test_rows_are_read_over_defaults(config: Path) -> None:
    protocol, recipes = search.read_rows(config)
    assert protocol.probe_seeds == 2
    assert list(recipes) == ['plain', 'wide']
    assert recipes['plain'].adaptation.notation('M') == 'M-ExPLoRA-[L]-r8'
    assert recipes['wide'].adaptation.unfrozen_blocks == (0, -1)
    assert recipes['wide'].adaptation.alpha == 1
    assert recipes['wide'].optim.base_lr == 0.001


def test_an_unknown_key_is_named(config: Path) -> None:
    config.write_text(CONFIG + '  odd: {step: 3}\n')
    with pytest.raises(ValueError, match=r'row odd: unknown keys step'):
        search.read_rows(config)
    config.write_text(CONFIG + '  odd: {arguments: {views: {}}}\n')
    with pytest.raises(ValueError, match=r'row odd: MAE cannot take'):
        search.read_rows(config)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'nothing\.yaml'):
        search.read_rows(tmp_path / 'nothing.yaml')


def test_finished_rows_are_kept_and_not_run_again(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []

    def run_row(name: str, *args: object) -> dict[str, object]:
        ran.append(name)
        if name == 'wide' and len(ran) == 2:
            raise KeyboardInterrupt
        return {'name': name, 'score': Score(linear=[0.5, 0.6]).to_dict(), 'seconds': 1.0}

    monkeypatch.setattr(search, '_measure_source', lambda *args: Score(linear=[0.4, 0.5]))
    monkeypatch.setattr(search, '_run_row', run_row)
    with pytest.raises(KeyboardInterrupt):
        search.run_search(config, tmp_path / 'out')
    report = search.run_search(config, tmp_path / 'out')
    assert ran == ['plain', 'wide', 'wide']
    rows = [json.loads(line) for line in (tmp_path / 'out' / 'rows.jsonl').read_text().splitlines()]
    assert [row['name'] for row in rows] == ['source', 'plain', 'wide']
    assert '| plain | 55.0 (+10.0 ± 0.0) |' in report.read_text()
