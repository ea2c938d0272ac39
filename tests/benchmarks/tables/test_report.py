"""Reports put the published value beside what was measured, and say what holds."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.tables import records
from benchmarks.tables.compare import compare
from benchmarks.tables.report import markdown, to_csv, torchgeo_bench, write_report
from benchmarks.tables.rows import Finding, get_table
from benchmarks.tables.runner import run_rows
from benchmarks.tables.scales import Scale
from benchmarks.tables.stages import Store
from benchmarks.tables.summary import MIXED, Spread, holm, judge, judge_all, paired, spread, summarise

VALUES = {
    'source': (60.0, 61.0, 62.0),
    'l': (64.0, 65.5, 66.0),
    'l_r64': (67.0, 68.0, 69.0),
    'l_r8': (66.0, 68.0, 67.5),
}


@pytest.fixture
def ablation(record: Callable[..., dict]) -> list[dict]:
    return [record(row, seed, value) for row, values in VALUES.items() for seed, value in enumerate(values)]


def lines_of(text: str) -> dict[str, list[str]]:
    cells = [line.strip('| ').split(' | ') for line in text.splitlines() if line.startswith('| ')]
    return {row[0]: row for row in cells}


def test_every_row_of_the_table_is_there_with_its_published_value(tiny: Scale, ablation: list[dict]) -> None:
    text = markdown(get_table('3'), tiny, ablation)
    rows = lines_of(text.split('## ')[0])
    assert len(rows) == 1 + len(get_table('3').rows)
    assert rows['[L]-r64'][1:4] == ['77.48 (I)', '68.0 ± 2.5', '+7.0 ± <0.1']
    assert rows['DINOv2 as it is'][1:3] == ['69.00 (I)', '61.0 ± 2.5']
    assert rows['[L]-r8'][1] == 'not published here'
    assert rows['[1,L]-r32 (added)'][1] == '-'
    assert rows['[1]-r32'][2].startswith('not run')
    assert '24 tiles stands in for fmow_rgb' in text and 'the same for both' in text
    gfm = lines_of(markdown(get_table('1'), tiny, []))['GFM, LoRA-r8']
    assert gfm[1] == '73.03 (I)' and gfm[2].startswith('published only: a Swin transformer')


def test_a_row_is_compared_with_the_source_of_its_own_objective(
    tiny: Scale, record: Callable[..., dict]
) -> None:
    values = {'dinov2': 60.0, 'mae': 50.0, 'd_l_r64': 61.0, 'm_l_r64': 53.0}
    sources = ('dinov2', 'mae')
    found = [
        record(row, seed, value + seed, '2', adaptation=None if row in sources else '[L]-r4')
        for row, value in values.items()
        for seed in (0, 1)
    ]
    rows = lines_of(markdown(get_table('2'), tiny, found).split('## ')[0])
    assert rows['D-ExPLoRA-[L]-r64 ViT-L'][3] == '+1.0 ± <0.1'
    assert rows['M-ExPLoRA-[L]-r64 ViT-L (added)'][3] == '+3.0 ± <0.1'
    assert rows['MAE ViT-L (added)'][3] == '-'


def test_the_papers_findings_are_judged_by_paired_differences(tiny: Scale, ablation: list[dict]) -> None:
    judged = {f.text: (d, v) for f, d, v in judge_all(get_table('3'), ablation)}
    difference, verdict = judged['[L]-r64 is above the source']
    assert verdict == 'holds' and difference == Spread(7.0, 0.0, 2.0, 3)
    assert judged['[L]-r64 is above [L] without LoRA'][1] == 'holds'
    assert judged['r8 is below r32'] == (None, 'not run')
    text = markdown(get_table('3'), tiny, ablation)
    found = lines_of(text.split("## The paper's findings")[1])
    assert found['[L]-r64 is above the source'][1:3] == ['I', '+7.0 ± <0.1, holds']
    assert found['r8 is below r32'][1:3] == ['W', 'not run']


def test_every_score_judges_the_findings(tiny: Scale, record: Callable[..., dict]) -> None:
    scores = {'source': (60.0, 61.0), 'l_r64': (62.0, 63.0)}
    rows = [
        {**record(row, seed, value), 'scores': {'logistic, all': value, 'knn, 25': 50.0 - value}}
        for row, values in scores.items()
        for seed, value in enumerate(values)
    ]
    found = lines_of(markdown(get_table('3'), tiny, rows).split("## The paper's findings")[1])
    assert found['finding'][2:] == ['top-1, % here (linear probe, all labels)', 'k-NN, 25 labels a class']
    verdicts = found['[L]-r64 is above the source'][2:]
    assert verdicts == ['+2.0 ± <0.1, holds', '-2.0 ± <0.1, does not hold']


@pytest.mark.parametrize(
    ('difference', 'equal', 'verdict'),
    [
        (Spread(2.0, 0.5, 1e9), False, 'holds'),
        (Spread(-2.0, 0.5, 1e9), False, 'does not hold'),
        (Spread(0.5, 0.5, 1e9), False, 'not told apart'),
        # One point below is the margin of what is not below.
        (Spread(-0.5, 0.2, 1e9), True, 'holds'),
        (Spread(-0.5, 0.5, 1e9), True, 'not told apart'),
        (Spread(0.5, 1.0, 1e9), True, 'not told apart'),
        (Spread(0.5, 0.5, 1e9), True, 'holds'),
        (Spread(-2.0, 0.2, 1e9), True, 'does not hold'),
        (Spread(9.0, None), False, 'one seed: not told apart'),
        (Spread(9.0, None, single=True), False, 'one configuration: not told apart'),
        (None, False, 'not run'),
    ],
)
def test_a_verdict_needs_more_than_its_interval(difference: Spread | None, equal: bool, verdict: str) -> None:
    assert judge(Finding('f', 'W', 'a', 'b', equal), difference) == verdict


def test_differences_pair_the_same_seeds(record: Callable[..., dict]) -> None:
    one = [record('l', 0, 10.0), record('l', 2, 20.0)]
    two = [record('source', 2, 19.0), record('source', 1, 50.0)]
    assert paired(one, two) == Spread(1.0, None)
    assert paired(one[:1], two) is None
    assert spread([[1.0], [2.0], [3.0]]).text('+') == '+2.0 ± 2.5'
    assert Spread(-0.06, 0.4, 1e9).text() == '-0.1 ± 0.8' and Spread(0.004, None).text() == '0.004'
    assert Spread(1.01e-6, 2.34e-8, 1e9).text() == '1.01e-06 ± 4.6e-08'


def test_draws_of_labels_widen_an_interval_and_one_configuration_is_no_seed() -> None:
    # Seeds agree exactly: they are one configuration, and the draws are what varies.
    one = spread([[60.0, 62.0, 64.0]] * 3)
    assert one.text() == '62.0 ± 5.0 (one configuration, 3 draws)' and one.single
    assert spread([[77.0]] * 3).text() == '77.0 (one configuration)'
    assert spread([[60.0, 62.0, 64.0]]).text() == '62.0'  # one seed
    seeds = [[60.0], [61.0], [62.0]]
    both = spread([[v - 2, v, v + 2] for (v,) in seeds])
    assert both.half > spread(seeds).half and both.half > 4  # type: ignore[operator]
    # The interval of the mean over both holds the truth as often as it says.
    generator, hits = np.random.default_rng(0), []
    for _ in range(800):
        table = generator.normal(size=(5, 1)) + generator.normal(size=(1, 5)) + generator.normal(size=(5, 5))
        found = spread(table.tolist())
        hits.append(abs(found.mean) <= found.half)  # type: ignore[operator]
    assert 0.93 < np.mean(hits) < 0.99


def test_draws_are_read_from_the_details_of_a_record(record: Callable[..., dict]) -> None:
    detail = {'method': 'knn', 'budget': '25', 'accuracies': [0.5, 0.6], 'mean': 0.55}
    rows = [
        record('l', s, 70.0 + s, scores={'knn, 25': 55.0}, details=[detail | {'seed': s}]) for s in range(3)
    ]
    assert summarise(rows, 'knn, 25').text() == '55.0 ± 63.5 (one configuration, 2 draws)'  # type: ignore[union-attr]
    assert summarise(rows).text() == '71.0 ± 2.5'  # type: ignore[union-attr]
    assert summarise(rows, 'linear, all') is None


def test_findings_of_a_table_are_judged_together(record: Callable[..., dict]) -> None:
    assert holm([0.01, 0.04, 0.03, 0.9]) == pytest.approx([0.04, 0.09, 0.09, 0.9])
    assert holm([]) == []
    # Alone p = 0.03; with the other findings of the table that ran it is no longer enough.
    near = {'source': (60.0, 61.0, 62.0), 'l_r64': (61.5, 61.9, 63.7)}
    rest = {'l': (61.4, 61.0, 63.5), 'l_r8': (60.2, 61.6, 62.0), 'l_r32': (60.0, 62.0, 62.2)}

    def verdict(values: dict) -> str:
        rows = [record(r, s, v) for r, column in values.items() for s, v in enumerate(column)]
        judged = {f.text: v for f, _, v in judge_all(get_table('3'), rows)}
        return judged['[L]-r64 is above the source']

    assert (verdict(near), verdict(near | rest)) == ('holds', 'not told apart')


def test_rows_of_different_precisions_are_not_compared(tiny: Scale, record: Callable[..., dict]) -> None:
    rows = [record('l', s, 64.0 + s, precision='bf16-mixed') for s in range(3)]
    rows += [record('l_r64', s, 68.0 + s, precision='32-true') for s in range(3)]
    judged = {f.text: v for f, _, v in judge_all(get_table('3'), rows)}
    assert judged['[L]-r64 is above [L] without LoRA'] == MIXED
    text = markdown(get_table('3'), tiny, rows)
    assert 'different precisions and are not compared across them** (bf16-mixed: l; 32-true: l_r64)' in text
    assert ' Trained in 32-true.' in markdown(get_table('3'), tiny, rows[3:])
    # Seeds of one row are averaged only over one precision: the last one's.
    again = record('l', 3, 90.0, precision='32-true')
    text = markdown(get_table('3'), tiny, [*rows, again])
    assert lines_of(text.split('## ')[0])['[L] without LoRA'][2] == '90.0'


def test_classes_that_training_lacks_are_reported(tiny: Scale, record: Callable[..., dict]) -> None:
    text = markdown(get_table('3'), tiny, [record('l', 0, 64.0, absent={'tapir': {'test': 7}})])
    assert 'whose images count as wrong: tapir (7 test).' in text


def test_a_tuned_row_is_compared_with_its_source_at_the_same_label_budget(
    tiny: Scale, record: Callable[..., dict]
) -> None:
    values = {'source_lora_1': 50.0, 'source_lora_10': 70.0, 'd_l_r32_lora_1': 53.0, 'd_l_r32_lora_10': 71.0}
    found = [record(row, 0, value, 'labels', scores={}) for row, value in values.items()]
    rows = lines_of(markdown(get_table('labels'), tiny, found).split('## ')[0])
    name = 'D-ExPLoRA-[L]-r32, LoRA-r8, {} of the labels (added)'
    assert [rows[name.format(share)][3] for share in ('1%', '10%')] == ['+3.0', '+1.0']


def test_files_and_plots_are_written(tiny: Scale, ablation: list[dict], tmp_path: Path) -> None:
    files = {p.name: p for p in write_report(tmp_path, get_table('3'), tiny, ablation)}
    assert set(files) == {
        'table_3.md',
        'table_3.csv',
        'table_3_bars.png',
        'table_3_trainable.png',
        'table_3_flops.png',
        'table_3_curves.png',
    }
    for name, path in files.items():
        if name.endswith('.png'):
            assert Image.open(path).width > 500
            assert f'({name})' in files['table_3.md'].read_text()
    rows = list(csv.DictReader(files['table_3.csv'].open()))
    assert len(rows) == 12 and {r['kg_co2'] for r in rows} == {'0.0004'}
    assert 'formula, 10 W' in files['table_3.md'].read_text()


def test_a_probed_row_becomes_rows_of_torchgeo_bench(tiny: Scale, tmp_path: Path) -> None:
    table = get_table('2')
    found = run_rows(table, table.choose('dinov2'), tiny, 1, Store(tmp_path / 's'), tmp_path / 'r.jsonl')
    rows = list(csv.DictReader(io.StringIO(torchgeo_bench(found))))
    assert [r['method'] for r in rows] == ['linear', 'knn5']
    assert float(rows[0]['metric_value']) == pytest.approx(found[0]['value'] / 100)
    assert rows[0]['dataset'] == '24 tiles' and rows[0]['n_test'] == '24' and rows[0]['seed'] == '0'
    assert torchgeo_bench([]).count('\n') == 1
    assert to_csv(found).count('\n') == 2
    found[0]['details'] = [{**found[0]['details'][0], 'budget': b} for b in ('1%', '2.5%', '5', 'all')]
    parts = [r['partition'] for r in csv.DictReader(io.StringIO(torchgeo_bench(found)))]
    assert parts == ['0.01x_train', '0.025x_train', '5_per_class', 'default']


def test_rows_and_files_are_compared_by_seed(ablation: list[dict], tmp_path: Path) -> None:
    path, other = tmp_path / 'results.jsonl', tmp_path / 'other.jsonl'
    for one in ablation:
        records.append(path, one)
        if one['row'] == 'l':
            records.append(other, {**one, 'value': one['value'] - 1})
    text = compare('3:l_r64', '3:source', path)
    assert '| value | 68.0 ± 2.5 | 61.0 ± 2.5 | +7.0 ± <0.1 |' in text
    assert '| k-NN, all labels | 63.0 ± 2.5 | 56.0 ± 2.5 | +7.0 ± <0.1 |' in text
    text = compare(str(path), str(other), path)
    assert text.count('table 3') == 1 and '| +1.0 ± <0.1 |' in text
    with pytest.raises(ValueError, match="no results for '3:none': use TABLE:ROW, available: 3:source, 3:l"):
        compare('3:none', '3:l', path)
    with pytest.raises(FileNotFoundError, match=r'results file .*missing\.jsonl does not exist'):
        compare(str(path), str(tmp_path / 'missing.jsonl'), path)
    records.append(tmp_path / 'apart.jsonl', {**ablation[0], 'table': '9'})
    with pytest.raises(ValueError, match='have no rows in common'):
        compare(str(other), str(tmp_path / 'apart.jsonl'), path)
