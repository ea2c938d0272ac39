"""The demonstrations of band groups and of dates run and leave table, numbers and picture."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from benchmarks.bands import run_bands
from benchmarks.dates import read_series, run_dates

DATA = Path(__file__).parents[1] / 'data'


@pytest.fixture
def few_tiles(tmp_path: Path) -> Path:
    """Twelve 13-band tiles of each of three classes."""
    for name in ('Forest', 'River', 'SeaLake'):
        (tmp_path / 'ms' / name).mkdir(parents=True)
        for path in sorted((DATA / 'eurosat_ms' / name).glob('*.tif'))[:12]:
            shutil.copy(path, tmp_path / 'ms' / name)
    return tmp_path / 'ms'


@pytest.mark.group(name='long')
def test_groups_of_bands_are_compared_before_and_after(few_tiles: Path, tmp_path: Path) -> None:
    text = run_bands(tmp_path / 'out', few_tiles, steps=2, seeds=2).read_text()
    found = json.loads((tmp_path / 'out' / 'bands.json').read_text())
    assert len(found['scores']) == 5 and all(len(v) == 2 for v in found['scores'].values())
    assert found['tiles'] == 36 and 'A demonstration on 36 tiles (ms), not a result' in text
    assert (tmp_path / 'out' / 'bands.png').stat().st_size > 10_000
    assert str(tmp_path) not in text


@pytest.mark.group(name='long')
def test_dates_are_compared_with_one_date(tmp_path: Path) -> None:
    text = run_dates(tmp_path / 'out', DATA / 'naip', steps=2).read_text()
    losses = json.loads((tmp_path / 'out' / 'dates.json').read_text())['losses']
    assert list(losses) == ['one date', 'all dates', 'all dates, the same patches removed']
    assert all(run[0][0] == 0 and run[-1][0] == 2 for (run,) in losses.values())
    assert '2 dates (2017, 2020)' in text and (tmp_path / 'out' / 'dates.png').stat().st_size > 10_000


def test_windows_of_all_dates_show_the_same_place() -> None:
    train, test, times = read_series(DATA / 'naip')
    assert train.shape[1:] == test.shape[1:] == (2, 3, 64, 64) and len(train) > len(test) > 0
    assert times.tolist() == [[15, 7, 12], [18, 7, 12]]
    one, two = (train[:, i].mean(dim=1).flatten(1) for i in range(2))
    same = torch.nn.functional.cosine_similarity(one - one.mean(1, True), two - two.mean(1, True))
    shuffled = torch.nn.functional.cosine_similarity(
        one - one.mean(1, True), two.roll(7, 0) - two.roll(7, 0).mean(1, True)
    )
    assert same.mean() > shuffled.mean() + 0.1
