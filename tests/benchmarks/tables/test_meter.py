"""Energy is what meters report, and nothing where there is none."""

import json
import subprocess
import sys
import time

import pytest
import torch

from benchmarks.tables import meter
from benchmarks.tables.meter import GRID, Meter
from benchmarks.tables.training import Progress
from explora_geo import _adapt_progress


def test_a_counter_is_read_in_between_and_counts_for_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    stands, last = iter([0, 90, 30, 80, 10]), [0]  # of a counter of 100 J: 0, 90, 130, 180, 210

    def counter() -> float:
        last[0] = next(stands, last[0])
        return last[0]

    monkeypatch.setattr(meter, '_EVERY', 0.01)
    monkeypatch.setattr(_adapt_progress, '_rapl_meters', lambda: [(counter, 100.0)])
    with Meter(devices=2) as found:
        deadline = time.monotonic() + 30
        while last[0] != 10 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert found.energy is not None and found.energy['method'] == 'measured, RAPL x 2'
    assert found.energy['kwh'] == pytest.approx(2 * 210 / 3.6e6)
    assert found.energy['kg'] == pytest.approx(GRID * found.energy['kwh'])


def test_without_a_meter_or_with_that_of_processors_beside_a_gpu_the_energy_stays_blank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_adapt_progress, '_rapl_meters', lambda: [])
    with Meter() as found:
        pass
    assert found.energy is None and found.to_dict()['energy'] is None and found.seconds > 0
    monkeypatch.setattr(_adapt_progress, '_rapl_meters', lambda: [(time.monotonic, 0.0)])
    monkeypatch.setattr(_adapt_progress, '_nvml_meters', lambda: [])
    assert _adapt_progress.EnergyMeter().kinds == 'RAPL'
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert _adapt_progress.EnergyMeter().watt_hours is None


def test_time_before_a_stop_counts_and_energy_is_then_not_known() -> None:
    found = Meter()
    found.seconds, found.energy = 10.0, {'kwh': 1.0, 'kg': 0.4, 'method': 'measured, RAPL'}
    assert Progress(None, 1).costs(found)['energy'] == found.energy
    costs = Progress(None, 1, before=30.0).costs(found)
    assert costs['seconds'] == 40.0 and costs['energy'] is None


_MEASURED = """
import json, torch
from benchmarks.tables.meter import Meter
with Meter() as meter:
    block = torch.ones(20_000_000)
    block += 1
print(json.dumps(meter.to_dict()))
"""


def test_a_meter_sees_time_and_memory() -> None:
    # In a process of its own, as one that held more before may have memory left to give.
    done = subprocess.run([sys.executable, '-c', _MEASURED], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found['seconds'] > 0 and 'hardware' in found['machine']
    if not torch.cuda.is_available():
        assert found['peak_memory'] > 40_000_000
