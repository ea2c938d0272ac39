"""House style that no linter checks."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [p for n in ('explora_geo', 'benchmarks', 'tests', 'docs') for p in sorted((ROOT / n).rglob('*.py'))]
#: Files that are longer than 400 lines, and why.
LONG: dict[str, str] = {}


def test_files_are_short_or_say_why() -> None:
    long = {str(p.relative_to(ROOT)) for p in FILES if len(p.read_text().splitlines()) > 400}
    assert long <= set(LONG)


def test_no_file_is_called_after_nothing() -> None:
    vague = {'utils', 'helpers', 'misc', 'common', 'manager'}
    assert not [p for p in FILES if p.stem in vague]


@pytest.mark.parametrize('name', ['explora_geo', 'benchmarks'])
def test_every_module_says_what_it_is(name: str) -> None:
    import ast

    modules = [p for p in FILES if p.is_relative_to(ROOT / name)]
    assert not [p for p in modules if not ast.get_docstring(ast.parse(p.read_text()))]
