"""Notebooks run from the first cell to the last, and read well without being run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())['cells'] if cell['cell_type'] == kind]


def source(cell: dict[str, Any]) -> str:
    return ''.join(cell['source'])


def name_of(path: Path) -> str:
    return path.stem


def test_there_are_six() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == ['01', '02', '03', '04', '05', '06']


@pytest.mark.group(name='notebooks')
@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_a_notebook_runs(path: Path) -> None:
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONWARNINGS': 'ignore'}
    environment.pop('MPLBACKEND', None)  # pictures are drawn as they are for a reader
    command = [
        sys.executable,
        '-m',
        'pytest',
        '--nbmake',
        '--nbmake-timeout=600',
        '-q',
        '-p',
        'no:cacheprovider',
    ]
    done = subprocess.run([*command, str(path)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_a_notebook_keeps_its_outputs_and_they_are_clean(path: Path) -> None:
    code = cells(path, 'code')
    assert [cell['execution_count'] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell['outputs']]
    assert {output['output_type'] for output in outputs} <= {'display_data', 'execute_result', 'stream'}
    assert not [output for output in outputs if output.get('name') == 'stderr']
    assert sum('image/png' in output.get('data', {}) for output in outputs) >= 1
    assert path.stat().st_size < 2_000_000
    # Where it was made is no business of the reader
    assert not re.search(r'/(?:home|root|work|tmp|Users)/', json.dumps(outputs))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_a_notebook_imports_the_package_and_defines_nothing(path: Path) -> None:
    text = '\n'.join(source(cell) for cell in cells(path, 'code'))
    assert 'from explora_geo' in text
    assert not re.search(r'^\s*(?:def|class) ', text, flags=re.MULTILINE)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_links_of_a_notebook_resolve(path: Path) -> None:
    text = '\n'.join(source(cell) for cell in cells(path, 'markdown'))
    links = [link for link in re.findall(r'\]\(([^)#\s]+)[^)]*\)', text) if '://' not in link]
    assert links and not [link for link in links if not (path.parent / link).exists()]
