"""The comparison of ways to read runs and says what it measured."""

import json
import shutil
from pathlib import Path

from benchmarks.reading import run_reading

DATA = Path(__file__).parents[1] / 'data'


def test_every_installed_way_is_measured(tmp_path: Path, tiles: Path) -> None:
    source = tmp_path / 'ms'
    for path in sorted((DATA / 'eurosat_ms' / 'Forest').glob('*.tif'))[:4]:
        (source / 'Forest').mkdir(parents=True, exist_ok=True)
        shutil.copy(path, source / 'Forest')
    report = run_reading(tmp_path / 'out', source, tiles, seconds=0.03).read_text()
    tables = json.loads((tmp_path / 'out' / 'reading.json').read_text())['tables']
    assert len(tables) == 2 and str(tmp_path) not in report
    for rows in tables.values():
        speeds = {name: speed for name, speed, _ in rows}
        assert all(speed > 0 for speed in speeds.values())
        assert speeds['PackedDataset'] > speeds['FolderDataset']
    assert '13-band GeoTIFF tiles of ms' in report and '| PackedDataset |' in report
