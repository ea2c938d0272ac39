"""Running commands as a user would."""

from collections.abc import Callable

import pytest

from explora_geo.cli import main


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that succeeds, and return what it prints."""

    def call(*args: object) -> str:
        try:
            main([str(a) for a in args])
        except SystemExit as stop:
            assert not stop.code, capsys.readouterr().err
        return capsys.readouterr().out

    return call


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail in one sentence with exit code 2, and return the sentence."""

    def call(*args: object) -> str:
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in args])
        printed = capsys.readouterr()
        assert stop.value.code == 2 and 'Traceback' not in printed.err + printed.out
        lines = [line for line in printed.err.splitlines() if line.startswith('error: ')]
        assert len(lines) == 1 and printed.err.rstrip().endswith(lines[0])
        return lines[0].removeprefix('error: ')

    return call
