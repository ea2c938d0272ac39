"""Commands of `explora-bench` that run the paper's tables: list, plan, run, report, compare."""

from pathlib import Path
from typing import Annotated, Any

import typer

from explora_geo._cli_console import say

RESULTS = Path('benchmarks/results')
_TABLE = Annotated[str, typer.Argument(help='Number of a table, such as 3, or a YAML file of one.')]
_SCALE = Annotated[str, typer.Option(help='smoke, demo, small, paper, or a YAML file of one.')]
_ROWS = Annotated[str, typer.Option(help='Rows by id, separated by commas; all if empty.')]
_SEEDS = Annotated[int | None, typer.Option(help="Runs of every row; the scale's if not given.")]
_OUT = Annotated[Path, typer.Option(help='Folder of the results; each scale has one of its own in it.')]


def _open(scale: str, out: Path, table: str = '') -> tuple[list[Any], Any, Path, list[dict[str, Any]]]:
    """Return one table or all, the scale, its results file and the records in it."""
    from .records import read
    from .rows import get_table, read_tables
    from .scales import get_scale

    tables, found = [get_table(table)] if table else list(read_tables().values()), get_scale(scale)
    results = out / found.name / 'results.jsonl'
    return tables, found, results, read(results)


def list_tables(
    table: Annotated[str, typer.Argument(help='Number of a table; all if empty.')] = '',
    scale: _SCALE = 'demo',
    out: _OUT = RESULTS,
) -> None:
    """List tables and rows: published values, what runs at a scale, and how many seeds are finished.

    Example: explora-bench list 3 --scale small
    """
    from .jobs import why_not
    from .records import markdown_table

    tables, found, _, known = _open(scale, out, table)
    for one in tables:
        lines = []
        for row in one.rows.values():
            seeds = len({r['seed'] for r in known if (r['table'], r['row']) == (one.id, row.id)})
            state = why_not(one, row, found) or (f'{seeds} seeds finished' if seeds else 'runs')
            lines.append([row.id, row.name, 'not in the paper' if row.added else str(row.published), state])
        header = ['id', 'row', 'published', f'at the scale {found.name}']
        title = f'Table {one.id}: {one.title}; {one.metric}'
        say('\n'.join([title, '', *markdown_table(header, lines), '']))


def plan(
    table: _TABLE, rows: _ROWS = '', scale: _SCALE = 'small', seeds: _SEEDS = None, out: _OUT = RESULTS
) -> None:
    """Show the cost of rows before they run: parameters, steps, memory, and hours once a run was timed here.

    Models are built on the meta device, so even the largest is counted at no cost. Example:
    explora-bench plan 1 --scale paper
    """
    from . import cost
    from .records import read

    (one,), found, *_ = _open(scale, out, table)
    known = [r for path in sorted(out.glob('*/results.jsonl')) for r in read(path)]
    rate, count = cost.measured_rate(known), seeds or found.seeds
    planned = cost.plan_rows(one, one.choose(rows), found, rate)
    title = f'Table {one.id} at the scale {found.name}: {one.title}'
    say('\n'.join([title, '', *cost.show(planned, rate, count)]))
    if rate is not None:
        total = cost.total_hours(planned, found, rate, count)
        say(f'{total:,.2f} device hours for {count} seeds, including searches')
    differing = [p.row.name for p in planned if p.agrees is False]
    if differing:
        raise ValueError(f'{", ".join(differing)}: parameter count does not match the paper')


def run(
    table: _TABLE,
    rows: _ROWS = '',
    scale: _SCALE = 'demo',
    seeds: _SEEDS = None,
    resume: Annotated[
        bool, typer.Option(help='Resume stopped runs from their last checkpoint, or start over.')
    ] = True,
    store: Annotated[Path, typer.Option(help='Folder of stages.')] = Path('runs/bench'),
    out: _OUT = RESULTS,
) -> None:
    """Run rows of a table, skipping finished stages.

    For several GPUs or nodes, set trainer in the scale (devices, num_nodes, strategy) and start the command
    with torchrun or srun, as for any Lightning script; all processes must see the folders. Example:
    explora-bench run 2 --scale demo
    """
    from .records import read
    from .report import write_report
    from .runner import run_rows
    from .stages import Store, is_first_process

    (one,), found, results, _ = _open(scale, out, table)

    def progress(text: str) -> None:
        if is_first_process():
            say(text)

    stages = Store(store, resume, results.with_name('stages.jsonl'))
    run_rows(one, one.choose(rows), found, seeds or found.seeds, stages, results, progress)
    if is_first_process():
        files = write_report(results.parent, one, found, read(results))
        say('\n'.join(map(str, [results, *files])))


def report(
    table: Annotated[str, typer.Argument(help='Number of a table; all with results if empty.')] = '',
    scale: _SCALE = 'demo',
    out: _OUT = RESULTS,
) -> None:
    """Write a table's results as Markdown, CSV, torchgeo-bench rows and plots.

    Example: explora-bench report 3 --scale small
    """
    from .report import write_report

    tables, found, results, known = _open(scale, out, table)
    have = {r['table'] for r in known}
    tables = [one for one in tables if table or one.id in have]
    if not have:
        raise FileNotFoundError(f'no results in {results}: run explora-bench run TABLE --scale {scale} first')
    if not tables:
        raise ValueError(
            f'{results} contains only {", ".join(sorted(have))}: pass the YAML file of the table'
        )
    for one in tables:
        say('\n'.join(map(str, write_report(results.parent, one, found, known))))


def compare(
    one: Annotated[str, typer.Argument(help='TABLE:ROW, such as 3:l_r64, or a file of results.')],
    two: Annotated[str, typer.Argument(help='The same kind.')],
    scale: _SCALE = 'demo',
    out: _OUT = RESULTS,
) -> None:
    """Compare two rows seed by seed, or the rows that two results files share.

    Example: explora-bench compare 3:l_r64 3:source --scale small
    """
    from .compare import compare as compared

    say(compared(one, two, _open(scale, out)[2]))


COMMANDS = {'list': list_tables} | {f.__name__: f for f in (plan, run, report, compare)}
