"""The paper's tables as data."""

from pathlib import Path

import pytest

from benchmarks.tables.rows import MARKS, Published, get_table, read_table, read_tables

ROW = 'id: 9x\ntitle: t\ndataset: fmow_rgb\nmetric: m\nrows:\n  one: {name: One, objective: D%s}\n'


@pytest.fixture
def write(tmp_path: Path):
    def written(extra: str) -> Path:
        (tmp_path / 'table.yaml').write_text(ROW % extra)
        return tmp_path / 'table.yaml'

    return written


def test_all_tables_of_the_paper_are_there_in_its_order() -> None:
    tables = read_tables()
    assert list(tables) == ['1', '2', '3', '3m', '4', '5', '6', '7', '8', '9', '10', '11', 'labels']
    assert all(table.rows and table.metric for table in tables.values())


@pytest.mark.parametrize(
    ('table', 'row', 'text'),
    [
        ('1', 'd_l_r32', '79.09 (W)'),
        ('1', 'd_l_r64', '79.28 (I)'),
        ('1', 'dinov2_adalora', '78.87 (I)'),
        ('2', 'd_l_r64', '77.48 (I)'),
        ('2', 'dinov2', '69.00 (I)'),
        ('3', 'scratch', '54.29 (I)'),
        ('3', 'l', '74.83 (I)'),
        ('3', 'three_r64', '78.04 (I)'),
        ('3', 'l_r8', 'not published here'),
        ('4', 'd_l_r32_lora', 'not published here'),
        ('5', 'm_ends_r32', '60.15 (I)'),
        ('6', 'satmae_full', '79.99 (O)'),
        ('10', 'd_l_r32_lora', '68.07 (W)'),
    ],
)
def test_published_values_carry_their_mark_and_gaps_are_said(table: str, row: str, text: str) -> None:
    assert str(read_tables()[table].rows[row].published) == text


def test_systems_of_others_keep_their_row_and_say_why_they_do_not_run() -> None:
    rows = read_tables()['1'].rows
    assert rows['gfm_lora'].only == 'a Swin transformer' and rows['gfm_lora'].published.value == 73.03
    assert (
        rows['satmae_lora'].released == 'ViTLarge16_Weights.FMOW_RGB_SATMAE' and not rows['satmae_lora'].only
    )


def test_rows_that_are_not_in_the_paper_publish_nothing() -> None:
    added = [row for table in read_tables().values() for row in table.rows.values() if row.added]
    assert added and all(row.published.value is None for row in added)


def test_numbers_with_a_unit_are_read() -> None:
    assert Published.parse('15.7M W', '').value == pytest.approx(15.7e6)
    assert set(MARKS) == {'W', 'I', 'D', 'O'}


@pytest.mark.parametrize('text', ['79.09', '79.09 X', '-- W', 'about 79 W'])
def test_a_number_without_a_mark_is_refused(text: str, write) -> None:
    with pytest.raises(ValueError, match=r'table\.yaml, row one, published: cannot parse'):
        read_table(write(f', published: {text}'))


@pytest.mark.parametrize(
    ('extra', 'message'),
    [
        (', publishd: null', 'row one: unknown keys publishd'),
        (', adaptation: "[L+1]"', 'row one: cannot parse notation'),
        (', start: random, adaptation: "[L]"', 'row one: only full pre-training'),
        (', tuning: lora, last_blocks: 4', 'row one: last_blocks requires tuning: probe, got lora'),
        (', tune: {steps: 1}', 'row one: tune requires tuning on labels, got tuning: probe'),
        (', tuning: lorra', 'row one: tuning must be one of probe, linear, lora, full, none'),
    ],
)
def test_what_does_not_fit_is_named(extra: str, message: str, write) -> None:
    with pytest.raises(ValueError, match=message):
        read_table(write(extra))


def test_a_finding_of_a_row_that_is_not_there_is_refused(write) -> None:
    path = write('')
    path.write_text(path.read_text() + 'findings: [{text: f, mark: W, better: one, worse: two}]\n')
    with pytest.raises(ValueError, match="unknown row 'two' in the finding 'f'"):
        read_table(path)


def test_unknown_tables_and_rows_are_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown table '12', expected one of 1, 2"):
        get_table('12')
    with pytest.raises(ValueError, match="table 2 has no row 'dino', expected one of gassl, satmae"):
        get_table('2').choose('dino')
    with pytest.raises(FileNotFoundError, match=r'table .*mine\.yaml does not exist'):
        get_table(str(tmp_path / 'mine.yaml'))
