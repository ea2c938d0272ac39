"""The demo's report as JSON and Markdown."""

import json
from pathlib import Path
from typing import Any

from explora_geo.checkpoints import atomic_path


def _interval(value: dict[str, float], sign: str = '') -> str:
    return f'{100 * value["mean"]:{sign}.1f} ± {100 * value["half"]:.1f}'


def verdict(rows: list[dict[str, Any]]) -> str:
    """One sentence on what the adaptation bought, by the paired intervals.

    Args:
        rows: Output of `compare`.

    Returns:
        Which measurements rose or fell by more than their interval, and which did not move.
    """
    groups: dict[str, list[str]] = {'better': [], 'worse': [], 'not told apart': []}
    for row in rows:
        gain = row['gain']
        key = 'not told apart'
        if abs(gain['mean']) > gain['half']:
            key = 'better' if gain['mean'] > 0 else 'worse'
        groups[key].append(f'{row["measurement"]} ({_interval(gain, "+")})')
    text = '; '.join(f'{key}: {", ".join(names)}' for key, names in groups.items() if names)
    return f'Adapted against source, percentage points with 95 % intervals: {text}.'


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown.

    Args:
        report: Content of the JSON report.

    Returns:
        Text with the table and the picture.
    """
    adapter = report['adapter']
    lines = [
        f'# {report["adaptation"]} on EuroSAT RGB',
        '',
        f'Source: {report["source"]}. Adapted without labels on {report["tiles"]["unlabelled"]} tiles in '
        f'{report["steps"]} steps of {report["batch"]} ({report["seconds"]["adaptation"]:.0f} s); '
        f'{report["trainable_share"]:.1%} of the backbone trains.',
        '',
        '| test accuracy, % | source | adapted | gain | seeds |',
        '|---|---|---|---|---|',
    ]
    for row in report['rows']:
        lines.append(
            f'| {row["measurement"]} | {_interval(row["before"])} | {_interval(row["after"])} | '
            f'{_interval(row["gain"], "+")} | {row["seeds"]} |'
        )
    old, new = report['before'], report['after']
    lines += [
        f'| linear probe, all {report["tiles"]["labelled"]} labels | {100 * old["linear_all"]:.1f} | '
        f'{100 * new["linear_all"]:.1f} | {100 * (new["linear_all"] - old["linear_all"]):+.1f} | 1 |',
        '',
        report['verdict'],
        '',
        f'Intervals are Student t over draws of labels; the gain is paired (same labels before and '
        f'after). Test: {report["tiles"]["test"]} held-out tiles. The probe chooses features and '
        f'regularisation on {report["tiles"]["validation"]} validation tiles.',
        '',
        '| file | size |',
        '|---|---|',
        f'| adapter.safetensors | {adapter["adapter_mb"]:.2f} MB |',
        f'| the whole model | {adapter["model_mb"]:.2f} MB |',
        '',
        '![input, reconstruction, features and accuracy](demo.png)',
        '',
    ]
    if report['skipped_files']:
        lines += ['Skipped tiles: ' + ', '.join(report['skipped_files']), '']
    return '\n'.join(lines)


def write(folder: Path, report: dict[str, Any]) -> None:
    """Write `demo.json` and `demo.md`, each in one piece."""
    for name, text in (('demo.json', json.dumps(report, indent=1)), ('demo.md', markdown(report))):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text)
