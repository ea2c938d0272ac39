"""Console output and error messages of the command lines."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

console = Console()


def say(text: str) -> None:
    """Print a text verbatim, without wrapping to the terminal."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def show(title: str, rows: Mapping[str, object], numbers: bool = False) -> None:
    """Print names with texts or numbers as a table."""
    table = Table(show_header=False, title=escape(title), title_justify='left')
    table.add_column(overflow='fold')
    table.add_column(justify='right' if numbers else 'left')
    for name, value in rows.items():
        table.add_row(name, f'{value:,}' if numbers else escape(str(value or 'not specified')))
    console.print(table)


def names(text: str) -> list[str] | None:
    """Split the comma-separated names of an option; return None if there are none."""
    return [name.strip() for name in text.split(',') if name.strip()] or None


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function that shows progress bars on a terminal."""
    from rich.progress import Progress

    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        known: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in known:
                known[what] = progress.add_task(what, total=total)
            progress.update(known[what], completed=done)

        yield report


def run_app(application: typer.Typer, args: list[str]) -> None:
    """Run a command line; turn user errors into one sentence and exit code 2.

    Args:
        application: Commands.
        args: Arguments; `--debug` anywhere shows tracebacks.
    """
    debug = '--debug' in args
    try:
        application([a for a in args if a != '--debug'])
    except Exception as error:
        # Only some commands import jsonargparse and Lightning, so their errors are matched by name.
        named = type(error).__name__ in ('ArgumentError', 'MisconfigurationException')
        if debug or not (named or isinstance(error, ValueError | OSError | ImportError)):
            raise
        message = f'[bold red]error:[/] {escape(_sentence(error))}'
        Console(stderr=True).print(message, soft_wrap=True, highlight=False)
        raise SystemExit(2) from error


def _sentence(error: Exception) -> str:
    """Return the part of an error message that matters to users, on one line."""
    plain = error.strerror if isinstance(error, OSError) and error.filename is None else None
    text = ' '.join((plain or str(error)).split())  # without the error number
    if text.startswith('Caught ') and 'DataLoader worker process' in text:
        # torch embeds the worker's traceback in the message, with the error itself at the end
        text = str(error).strip().splitlines()[-1].partition(': ')[2]
    unknown = re.search(r"Option '([^']+)' is not accepted|Key '([^']+)' is not expected", text)
    if unknown is not None:  # jsonargparse surrounds this with every alternative it tried
        key = unknown[1] or unknown[2]
        return (
            f'unknown key {key!r} in the configuration: explora-geo fit --print_config lists the valid keys'
        )
    # Keep the innermost wrapped error, without the values repeated around it
    inner = re.search(r".*Errors: - (.+?)(?: - Expected a <class 'NoneType'>| Given value type:)", text)
    if inner is not None:
        return re.sub(r"^Problem with given class_path '[^']*': ", '', inner[1]).replace(
            'Expected a typing.Literal', 'expected one of '
        )
    return text
