"""`explora-geo adapt`: the main job."""

import os
import sys
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer


def adapt(
    archive: Annotated[list[str], typer.Argument(help='Folder of tiles, pack, list of files, or scenes.')],
    weights: Annotated[
        str, typer.Option(help='What is adapted: a file, timm/<name> or a name of `weights list`.')
    ] = 'timm/vit_small_patch14_dinov2.lvd142m',
    adaptation: Annotated[
        str | None, typer.Option(help='D-ExPLoRA-[L]-r32, M-ExPLoRA-[L]-r32 or anchor-[L]-r32.')
    ] = None,
    minutes: Annotated[float | None, typer.Option(help='Length; 30 minutes if nothing is given.')] = None,
    steps: Annotated[int | None, typer.Option(help='Length in optimizer steps.')] = None,
    epochs: Annotated[float | None, typer.Option(help='Length in passes over the archive.')] = None,
    bands: Annotated[str | None, typer.Option(help='Bands to use, in order, with commas.')] = None,
    labels: Annotated[
        Path | None, typer.Option(help='Labeled tiles, to score and choose the strength; never trained on.')
    ] = None,
    retention: Annotated[
        Path | None, typer.Option(help='Labeled natural images: what is still known of them.')
    ] = None,
    strength: Annotated[
        str, typer.Option(help='Share of the adapter that is kept, 0 to 1; auto: what validation prefers.')
    ] = 'auto',
    config: Annotated[Path | None, typer.Option(help='YAML of `fit` whose entries come first.')] = None,
    out: Annotated[Path, typer.Option(help='Folder of the run.')] = Path('runs/adapt'),
    beside: Annotated[
        Path | None, typer.Option(help='Adapter of the same weights to score beside it.')
    ] = None,
    quick: Annotated[
        bool, typer.Option('--quick', help='A short run to see how it goes: no turns, no strengths between.')
    ] = False,
    quoted: Annotated[
        Path | None, typer.Option(help='JSON of scores measured elsewhere, whose rivals the page quotes.')
    ] = None,
    force: Annotated[bool, typer.Option('--force', help='Adapt against advice.')] = False,
    no_open: Annotated[bool, typer.Option('--no-open', help='Leave the report closed.')] = False,
) -> None:
    """Adapt a backbone to an archive of unlabeled images, and report whether that helped.

    The folder of the run gets adapter.safetensors, config.yaml, report.json and report.html. The same command
    goes on with a run that was stopped. Example:

    explora-geo adapt tests/data/eurosat_rgb/train --labels tests/data/eurosat_rgb/test --minutes 2
    --weights ViTSmall14_Weights.LVD142M_DINOV2_DEPTH6 --out runs/adapt
    """
    from rich.console import Console
    from rich.markup import escape

    from explora_geo._adapt import run
    from explora_geo._adapt_report import Scoring
    from explora_geo._adapt_settings import Length

    given = {'minutes': minutes, 'steps': steps, 'epochs': epochs}
    lengths = [Length(float(n), unit) for unit, n in given.items() if n is not None]  # type: ignore[arg-type]
    if len(lengths) > 1:
        raise ValueError('give one of --minutes, --steps and --epochs')
    length = lengths[0] if lengths else Length(30, 'minutes')
    scoring = Scoring(labels, retention, beside, quick, _share(strength), quoted)
    console = Console(highlight=False)
    scenes = archive[0] if len(archive) == 1 else archive
    say = lambda text: console.print(escape(text), soft_wrap=True)  # noqa: E731
    adapted = run(scenes, out, weights, adaptation, length, bands, config, scoring, force, say)
    console.print(f'[bold]{escape(adapted.report["verdict"]["text"])}[/bold]')
    console.print(escape(adapted.report['verdict']['advice']))
    if not no_open and opens(os.environ, sys.stdout.isatty(), sys.platform):
        _open(adapted.page)
    console.print(escape(str(adapted.page.resolve())), soft_wrap=True)


def opens(environment: Mapping[str, str], terminal: bool, platform: str) -> bool:
    """Whether a page opens by itself: where somebody sits before a desktop, and not on a far machine.

    Args:
        environment: Environment variables.
        terminal: Whether output goes to a terminal.
        platform: `sys.platform`.
    """
    desktop = (
        platform in ('darwin', 'win32') or environment.get('DISPLAY') or environment.get('WAYLAND_DISPLAY')
    )
    elsewhere = environment.get('CI') or environment.get('SSH_CONNECTION')
    return bool(terminal and desktop and not elsewhere)


def _open(page: Path) -> None:
    """Show a page in the browser of the desktop, if there is one."""
    try:
        browser = webbrowser.get()
        if type(browser) is not webbrowser.GenericBrowser:  # that one would take over the terminal
            browser.open(page.resolve().as_uri())
    except (webbrowser.Error, OSError):
        return


def _share(text: str) -> float | None:
    """A strength, or None for `auto`."""
    try:
        return None if text == 'auto' else float(text)
    except ValueError:
        raise ValueError(f'strength must be auto or a number from 0 to 1, got {text!r}') from None
