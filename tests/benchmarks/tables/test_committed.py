"""Tables are regenerated from the committed results, to the byte."""

from pathlib import Path

import pytest

from benchmarks.tables import records
from benchmarks.tables.plots import PLOTS
from benchmarks.tables.report import markdown, to_csv, torchgeo_bench
from benchmarks.tables.rows import get_table
from benchmarks.tables.scales import get_scale

RESULTS = Path(__file__).parents[3] / 'benchmarks' / 'results'
REPORTS = sorted(RESULTS.glob('*/table_*.md'))


@pytest.mark.parametrize('report', REPORTS, ids=lambda p: f'{p.parent.name}-{p.stem}')
def test_a_committed_table_is_what_its_results_say(report: Path) -> None:
    table, scale = get_table(report.stem.removeprefix('table_')), get_scale(report.parent.name)
    known = records.latest(records.read(report.with_name('results.jsonl')))
    mine = [r for r in known if r['table'] == table.id]
    plots = [p for name in PLOTS if (p := report.with_name(f'{report.stem}_{name}.png')).is_file()]
    assert markdown(table, scale, mine, plots) == report.read_text()
    assert to_csv(mine) == report.with_suffix('.csv').read_text()
    bench = report.with_name(f'{report.stem}_torchgeo_bench.csv')
    assert torchgeo_bench(mine) == bench.read_text() if bench.is_file() else '\n' in torchgeo_bench(mine)


def test_tables_1_2_and_3_are_among_them() -> None:
    assert {p.stem for p in REPORTS} >= {'table_1', 'table_2', 'table_3', 'table_3m'} and len(REPORTS) == 10
