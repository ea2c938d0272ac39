"""The command line of the tables, from the first look to the comparison."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.__main__ import app
from explora_geo.cli import run_app


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.setenv('COLUMNS', '240')

    def called(*words: object, code: int = 0) -> str:
        with pytest.raises(SystemExit) as stop:
            run_app(app, [str(w) for w in words])
        assert (stop.value.code or 0) == code
        found = capsys.readouterr()
        return found.out + found.err

    return called


@pytest.fixture
def places(scale_file: Callable[..., Path], tmp_path: Path) -> dict[str, list[object]]:
    scale = ['--scale', scale_file(), '--out', tmp_path / 'results']
    return {'scale': scale, 'run': [*scale, '--store', tmp_path / 'store']}


def test_a_row_is_listed_planned_run_reported_and_compared(
    call: Callable[..., str], places: dict[str, list[object]], tmp_path: Path
) -> None:
    listed = call('list', '2', *places['scale'])
    assert (
        '77.48 (I)' in listed and 'published only: a ResNet-50' in listed and 'seeds finished' not in listed
    )
    planned = call('plan', '2', '--rows', 'd_l_r64', *places['scale'])
    assert '4 x 8' in planned and 'No runs on' in planned
    ran = call('run', '2', '--rows', 'dinov2,d_l_r64', '--seeds', '2', *places['run'])
    assert 'D-ExPLoRA-[L]-r64 ViT-L, seed 1: probe' in ran
    folder = tmp_path / 'results' / 'tiny'
    assert len((folder / 'results.jsonl').read_text().splitlines()) == 4
    assert str(folder / 'table_2_torchgeo_bench.csv') in ran
    report = (folder / 'table_2.md').read_text()
    assert '| D-ExPLoRA-[L]-r64 is above DINOv2 | I |' in report and 'not published here' not in report
    assert '2 seeds finished' in call('list', '2', *places['scale'])
    assert 'GFLOP/s in finished runs on' in call('plan', '3', *places['scale'])
    before = (folder / 'results.jsonl').read_bytes()
    call('run', '2', '--rows', 'dinov2,d_l_r64', '--seeds', '2', '--resume', *places['run'])
    assert (folder / 'results.jsonl').read_bytes() == before
    assert 'table_2.md' in call('report', *places['scale'])
    assert '| value |' in call('compare', '2:d_l_r64', '2:dinov2', *places['scale'])


@pytest.mark.group(name='long')
def test_the_papers_plan_builds_every_model_without_its_weights(
    call: Callable[..., str], tmp_path: Path
) -> None:
    planned = call('plan', '3', '--scale', 'paper', '--out', tmp_path)
    assert '15,710,208' in planned and '43.389M ok' in planned and 'DIFFERS' not in planned
    assert '6,250 x 1024' in planned and '200,000' not in planned


def test_what_is_wrong_is_one_sentence(
    call: Callable[..., str], places: dict[str, list[object]], tmp_path: Path
) -> None:
    assert "unknown table '12'" in call('run', '12', *places['run'], code=2)
    assert "unknown scale 'huge'" in call('plan', '3', '--scale', 'huge', code=2)
    assert 'no results in' in call('report', *places['scale'], code=2)
    table = tmp_path / 'mine.yaml'
    row = 'x: {name: x, objective: D, adaptation: "[L]", trainable: "7"}'
    table.write_text(f'id: mine\ntitle: t\ndataset: fmow_rgb\nmetric: m\nrows:\n  {row}\n')
    assert 'parameter count does not match the paper' in call('plan', table, '--scale', 'paper', code=2)


def test_a_table_of_ones_own_runs_like_the_papers(
    call: Callable[..., str], places: dict[str, list[object]], tmp_path: Path
) -> None:
    table = tmp_path / 'mine.yaml'
    table.write_text(
        'id: mine\ntitle: my ablation\ndataset: fmow_rgb\nmetric: "top-1, %"\n'
        'rows:\n  k: {name: "[L]-r2 on K", objective: M, adaptation: "[L]-r2", options: {targets: [k]}}\n'
    )
    call('run', table, *places['run'])
    text = (tmp_path / 'results' / 'tiny' / 'table_mine.md').read_text()
    assert '| [L]-r2 on K | not published here |' in text
    assert f'Made by `explora-bench report {table} --scale {places["scale"][1]}`' in text
    assert 'contains only mine: pass the YAML file of the table' in call('report', *places['scale'], code=2)
    assert 'table_mine.md' in call('report', table, *places['scale'])
