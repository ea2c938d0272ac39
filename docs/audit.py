"""`make audit`: licenses and known vulnerabilities of everything that is installed.

    python docs/audit.py .venv/bin/python

It writes docs/licenses.md anew, and fails where a vulnerability is known.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

PAGE = Path(__file__).parent / 'licenses.md'
#: Families of licenses by what their names hold, copyleft first.
FAMILIES = (
    ('GPL', r'(?<!L)(?<!Lesser )GPL(?!.*exception)|GNU General Public'),
    ('LGPL', r'LGPL|Lesser General'),
    ('MPL-2.0', r'MPL|Mozilla'),
    ('EPL or EUPL', r'\bEPL|EUPL|Eclipse'),
    ('proprietary', r'[Pp]roprietary|NVIDIA'),
    ('Apache-2.0', r'Apache'),
    ('MIT', r'MIT|HPND'),
    ('BSD', r'BSD'),
    ('ISC', r'ISC'),
    ('PSF', r'PSF|Python Software Foundation'),
)
COPYLEFT = ('GPL', 'LGPL', 'MPL-2.0', 'EPL or EUPL')
#: What distributions without a license in their metadata say in their files.
STATED = {'atheris': 'Apache-2.0', 'cuda-toolkit': 'NVIDIA proprietary'}


def family(name: str, license: str) -> str:
    """The family of a distribution's license, the strictest that its text names."""
    text = STATED.get(name, license)
    return next((kind for kind, pattern in FAMILIES if re.search(pattern, text)), 'not stated')


def page(rows: Iterable[Mapping[str, str]]) -> str:
    """The page of licenses.

    Args:
        rows: `Name` and `License` of each distribution.
    """
    found = sorted((row['Name'].lower(), family(row['Name'], row['License'])) for row in rows)
    counts = Counter(kind for _, kind in found)
    lines = [
        '# Licenses of the dependencies',
        '',
        f'What `.[tests]` installs on Linux: {len(found)} distributions, by the family of their license.',
        '',
        '| license | distributions | copyleft |',
        '|---|---|---|',
    ]
    for kind, count in counts.most_common():
        named = ', '.join(name for name, k in found if k == kind)
        shown = named if count <= 25 and kind not in ('MIT', 'BSD', 'Apache-2.0') else str(count)
        lines.append(
            f'| {kind} | {shown} | {"per file" if kind == "MPL-2.0" else "yes" if kind in COPYLEFT else ""} |'
        )
    lines += [
        '',
        'MPL-2.0 asks for changes to its own files to be published, and nothing of code that uses them.',
        'The proprietary ones are the CUDA libraries that PyTorch brings; its builds for the CPU do without.',
        '`make audit` writes this page, and asks for known vulnerabilities.',
    ]
    return '\n'.join(lines) + '\n'


def advisories(report: Mapping[str, list[dict[str, object]]]) -> tuple[list[str], int, int]:
    """Known vulnerabilities in a report of pip-audit.

    Returns:
        One line for each; how many distributions were looked up; and how many could not be.
    """
    rows = report['dependencies']
    lines = [
        f'{row["name"]} {row["version"]}: {entry["id"]}, fix: {", ".join(entry["fix_versions"]) or "none"}'
        for row in rows
        for entry in row.get('vulns', [])  # type: ignore[attr-defined]
    ]
    skipped = sum('skip_reason' in row for row in rows)
    return lines, len(rows) - skipped, skipped


def main(python: str) -> int:
    """Write the page of licenses and look for vulnerabilities; returns the exit status."""
    tools = Path(sys.executable).parent
    listed = [tools / 'pip-licenses', f'--python={python}', '--format=json', '--with-system']
    done = subprocess.run(listed, capture_output=True, text=True, check=True)
    rows = [row for row in json.loads(done.stdout) if row['Name'] != 'explora_geo']
    PAGE.write_text(page(rows))
    print(PAGE.read_text())
    where = 'import sysconfig; print(sysconfig.get_path("purelib"))'
    packages = subprocess.run(
        [python, '-c', where], capture_output=True, text=True, check=True
    ).stdout.strip()
    asked = [tools / 'pip-audit', '--path', packages, '--format=json', '--progress-spinner=off']
    done = subprocess.run(asked, capture_output=True, text=True)
    try:
        lines, checked, skipped = advisories(json.loads(done.stdout))
    except (ValueError, KeyError):
        lines, checked, skipped = [], 0, len(rows)
    print(*lines, sep='\n')
    if not checked:
        print('No vulnerability was looked up: the advisories of PyPI cannot be reached from here.')
    else:
        print(f'{checked} distributions looked up, {len(lines)} known vulnerabilities, {skipped} not found.')
    return bool(lines)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1]))
