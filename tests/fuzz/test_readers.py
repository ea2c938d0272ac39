"""The readers of weights refuse what the fuzzer makes, and the fuzzer itself runs."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fuzz import readers

ROOT = Path(__file__).parents[2]
READERS = ROOT / 'tests' / 'fuzz' / 'readers.py'


@pytest.fixture(autouse=True)
def tiny(small_names: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The models that the fuzzer reads."""
    monkeypatch.setitem(readers.builders._SIZES, 'tiny', (8, 2, 2))


@pytest.mark.parametrize('number', range(6))
def test_changed_headers_of_every_kind_of_file_are_read_or_refused(number: int, tmp_path: Path) -> None:
    for suffix, content in readers.seeds():
        kind = bytes([readers.SUFFIXES.index(suffix)])
        for changes in range(1, 4):
            content = readers.mutate_header(content, 100 * number + changes)
        readers.one(tmp_path, kind + content)


def test_a_reader_that_fails_without_a_sentence_is_found(tmp_path: Path) -> None:
    def fails(path: Path) -> None:
        raise ValueError('two\nlines')

    with pytest.raises(AssertionError, match='no sentence'):
        readers.check(fails, tmp_path)
    with pytest.raises(KeyError):
        readers.check(lambda path: {}['key'], tmp_path)


@pytest.mark.group(name='fuzzing')
@pytest.mark.skipif(find_spec('atheris') is None, reason='atheris is for Linux on x86')
def test_the_fuzzer_finds_no_crash_in_a_short_run(tmp_path: Path) -> None:
    command = [sys.executable, str(READERS), '--seconds', '20', '--crashes', str(tmp_path)]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'stat::number_of_executed_units' in done.stderr and not list(tmp_path.iterdir())
