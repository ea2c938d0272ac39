"""What forges read: workflows and hooks call what the Makefile does, and pages are where they look."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / 'Makefile').read_text()
WORKFLOWS = sorted((ROOT / '.github/workflows').glob('*.yml'))


def runs(workflow: Path) -> list[str]:
    jobs: dict[str, Any] = yaml.safe_load(workflow.read_text())['jobs']
    return [step['run'] for job in jobs.values() for step in job['steps'] if 'run' in step]


@pytest.mark.parametrize('workflow', WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_nothing_that_make_does_not(workflow: Path) -> None:
    targets = set(re.findall(r'^([a-z-]+):', MAKEFILE, re.M))
    commands = runs(workflow)
    assert commands
    for command in commands:
        called = re.match(r'make ([a-z-]+)', command)
        assert command == 'git diff --exit-code docs' or (called and called[1] in targets), command


def test_both_pythons_style_wheel_and_pages_are_checked() -> None:
    tests = yaml.safe_load((ROOT / '.github/workflows/test.yml').read_text())
    assert tests['jobs']['tests']['strategy']['matrix']['python'] == ['3.11', '3.12']
    assert {'make pytest', 'make lint', 'make wheel', 'make docs'} <= set(
        runs(ROOT / '.github/workflows/test.yml')
    )
    weekly = yaml.safe_load((ROOT / '.github/workflows/weekly.yml').read_text())
    assert weekly[True]['schedule'] and 'make test-newest' in runs(ROOT / '.github/workflows/weekly.yml')


def test_hooks_are_the_commands_of_make_lint() -> None:
    lint = MAKEFILE.split('\nlint:')[1].split('\n\n')[0]
    wanted = re.findall(r'^\t@\$\(BIN\)/(.+)', lint, re.M)
    (local,) = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())['repos']
    hooks = [
        hook['entry'].removeprefix('.venv/bin/').replace(' --force-exclude', '') for hook in local['hooks']
    ]
    assert hooks == [command.removesuffix(' .').strip() for command in wanted]


def test_templates_ask_for_what_helps() -> None:
    for name in ('bug', 'idea'):
        form = yaml.safe_load((ROOT / f'.github/ISSUE_TEMPLATE/{name}.yml').read_text())
        assert form['name'] and form['description'] and any(part.get('validations') for part in form['body'])
    assert 'explora-geo doctor --json' in (ROOT / '.github/ISSUE_TEMPLATE/bug.yml').read_text()
    assert 'docs/contributing.md' in (ROOT / 'CONTRIBUTING.md').read_text()
