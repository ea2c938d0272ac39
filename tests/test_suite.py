"""The suite is divided as the Makefile and continuous integration say."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import COLLECTED

ROOT = Path(__file__).parents[1]
GROUPS = re.findall(r'^GROUPS_IN_TURN := (.+)$', (ROOT / 'Makefile').read_text(), re.M)[0].split()
#: What takes minutes by its nature, and its group.
ENDURANCE = {
    'trainers/test_kill.py::test_twenty_kills_leave_no_trace_in_the_weights': 'kills',
    'trainers/test_long_runs.py::test_twenty_thousand_steps_take_no_more_than_four_thousand': 'long',
    'test_notebooks.py::test_a_notebook_runs': 'notebooks',
    'test_docs.py::test_every_command_of_a_page_runs': 'commands',
    'test_docs.py::test_every_code_block_of_a_page_runs': 'examples',
    'fuzz/test_readers.py::test_the_fuzzer_finds_no_crash_in_a_short_run': 'fuzzing',
}
MARK = re.compile(r"pytest\.mark\.group\(name='(\w+)'\)")


def test_there_are_six_groups_and_none_is_empty() -> None:
    used = {name for path in (ROOT / 'tests').rglob('test_*.py') for name in MARK.findall(path.read_text())}
    assert len(GROUPS) == len(set(GROUPS)) == 6 and used == set(GROUPS)


def test_a_test_of_minutes_belongs_to_one_group(request: pytest.FixtureRequest) -> None:
    for item in request.config.stash[COLLECTED]:  # of the whole suite where that is run
        marks = [mark.kwargs for mark in item.iter_markers('group')]
        assert len(marks) <= 1 and all(mark in [{'name': name} for name in GROUPS] for mark in marks), item
        assert not (marks and item.get_closest_marker('slow')), f'{item} is in a group, so need not be slow'


@pytest.mark.parametrize('test', ENDURANCE)
def test_endurance_is_in_its_group(test: str) -> None:
    file, _, name = test.partition('::')
    text = (ROOT / 'tests' / file).read_text()
    (above,) = re.findall(rf'((?:^[@ )].*\n)*)^def {name}\(', text, re.M)
    assert MARK.findall(above) == [ENDURANCE[test]]


@pytest.mark.skipif(shutil.which('make') is None, reason='make is not installed')
def test_continuous_integration_takes_the_groups_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(*args: str) -> str:
        done = subprocess.run(['make', *args], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def git(script: str) -> None:
        (tmp_path / 'git').write_text(f'#!/bin/sh\n{script}\n')
        (tmp_path / 'git').chmod(0o755)

    monkeypatch.setenv('PATH', str(tmp_path), prepend=':')
    found = []
    for commits in range(600, 606):
        git(f'case "$1" in rev-parse) echo false;; *) echo {commits};; esac')
        found.append(make('group-due'))
    assert found == GROUPS
    for unknown in ('echo true', 'exit 127'):  # a shallow copy, and none at all
        git(unknown)
        assert make('group-due') in GROUPS
    for name in GROUPS:
        assert f'''-m "group(name='{name}')"''' in make('--dry-run', 'test-group', f'GROUP={name}')
    script = (ROOT / '.ci' / 'run').read_text()
    assert 'group=$(make group-due)' in script and 'make test-group GROUP="$group"' in script
