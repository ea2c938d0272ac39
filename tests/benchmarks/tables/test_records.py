"""Results are appended whole, whatever interrupts the writer."""

from multiprocessing import get_context
from pathlib import Path

import pytest

from benchmarks.tables.records import append, by_row, latest, read


def _append_many(path: Path, writer: int) -> None:
    for i in range(50):
        append(path, {'writer': writer, 'i': i, 'padding': 'x' * 5000})


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / 'results.jsonl'
    context = get_context('fork')
    workers = [context.Process(target=_append_many, args=(path, w)) for w in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    records = read(path)
    assert len(records) == 150
    for writer in range(3):
        assert [r['i'] for r in records if r['writer'] == writer] == list(range(50))


def test_a_torn_line_is_not_read_and_the_next_one_replaces_it(tmp_path: Path) -> None:
    path = tmp_path / 'deep' / 'results.jsonl'
    append(path, {'i': 0})
    with path.open('a') as file:
        file.write('{"i": 1, "val')
    assert read(path) == [{'i': 0}]
    append(path, {'i': 2})
    assert read(path) == [{'i': 0}, {'i': 2}]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / 'results.jsonl'
    path.write_text('{"i": 0}\n{"i": \n{"i": 2}\n')
    with pytest.raises(ValueError, match=r'results\.jsonl, line 2 is damaged'):
        read(path)
    assert read(tmp_path / 'none.jsonl') == []


def test_the_last_record_of_a_row_and_seed_counts(record) -> None:
    records = [record('l', 1, 1.0), record('l', 0, 2.0), record('l', 1, 3.0)]
    assert [r['value'] for r in latest(records)] == [3.0, 2.0]
    assert [r['value'] for r in by_row(records, '3')['l']] == [2.0, 3.0]


def test_seeds_that_ran_by_other_settings_than_the_last_one_are_left_out(record) -> None:
    records = [record('l', seed, 1.0) for seed in (0, 1, 2)]
    changed = record('l', 1, 9.0, steps=8)
    assert [(r['seed'], r['value']) for r in latest([*records, changed])] == [(1, 9.0)]
    rates = record('l', 0, 9.0, learning_rates={'pretrain': {'base_lr': 2.0}})
    assert [r['seed'] for r in latest([*records, rates, record('l', 3, 1.0)])] == [1, 2, 3]
