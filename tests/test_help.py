"""What the command lines say of themselves."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

import benchmarks.__main__
from explora_geo import cli


def commands() -> Iterator[Any]:
    """Every command of both command lines, by its whole name."""

    def walk(name: str, command: Any) -> Iterator[Any]:
        if hasattr(command, 'commands'):
            for part, inner in command.commands.items():
                yield from walk(f'{name} {part}', inner)
        else:
            yield pytest.param(name, command, id=name)

    yield from walk('explora-geo', get_command(cli.app))
    yield from walk('explora-bench', get_command(benchmarks.__main__.app))


def examples(text: str) -> list[str]:
    """Command lines in a help text, which may go on over several lines of a paragraph."""
    paragraphs = [' '.join(p.split()) for p in re.split(r'\n\s*\n', text)]
    return re.findall(r'(?<![`\w])explora-(?:geo|bench) [a-z].*', '\n'.join(paragraphs))


@pytest.mark.parametrize(('name', 'command'), list(commands()))
def test_every_command_has_an_example_that_its_parser_accepts(name: str, command: Any) -> None:
    (example, *others) = examples(command.help)
    for line in (example, *others):
        words = shlex.split(line)
        assert shlex.join(words).startswith(name)
        # The parser alone: nothing runs. Commands of Lightning pass their options on.
        command.make_context(name, words[len(name.split()) :])


@pytest.mark.parametrize(('name', 'command'), list(commands()))
def test_every_argument_and_option_is_explained(name: str, command: Any) -> None:
    unexplained = [p.name for p in command.params if p.name != 'help' and not getattr(p, 'help', None)]
    assert not unexplained


def test_help_reads_like_a_table_of_contents(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(['--help'])
    printed = capsys.readouterr().out
    panels = ['Start', 'Plan and prepare', 'Train', 'Measure and map', 'Files']
    positions = [printed.index(f'─ {panel} ─') for panel in panels]
    assert positions == sorted(positions)
    assert '─ Commands ─' not in printed  # nothing stands outside the contents


@pytest.mark.parametrize(
    ('typed', 'offered'), [('par', {'params'}), ('weights i', {'inspect'}), ('probe --bud', {'--budgets'})]
)
def test_the_shell_completes_commands_and_options(typed: str, offered: set[str]) -> None:
    code = "import sys; sys.argv[0] = 'explora-geo'; from explora_geo.cli import main; main()"
    words = f'explora-geo {typed}'
    environment = {
        **os.environ,
        '_EXPLORA_GEO_COMPLETE': 'complete_bash',
        'COMP_WORDS': words,
        'COMP_CWORD': str(len(words.split()) - 1),
    }
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True)
    assert set(done.stdout.split()) == offered


@pytest.mark.slow
@pytest.mark.parametrize('name', ['fit', 'validate', 'test', 'predict'])
def test_help_of_lightnings_commands_ends_with_an_example(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([name, '--help'])
    printed = capsys.readouterr().out
    assert not stop.value.code and '--model' in printed
    assert printed.strip().splitlines()[-1].startswith(f'Example: explora-geo {name} --config')


def test_colours_are_for_terminals_only(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(['params', '[0]'])
    printed = capsys.readouterr()
    assert 'error: ' in printed.err and '\x1b[' not in printed.err + printed.out
