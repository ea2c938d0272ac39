"""Energy is what meters report, and nothing where there is none."""

import json
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.tables import meter
from benchmarks.tables.meter import GRID, Meter
from benchmarks.tables.training import Progress


@pytest.fixture
def rapl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Write counters of processors of 5,000 J as the kernel shows them; joules by folder."""
    monkeypatch.setattr(meter, '_RAPL', tmp_path)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    names = {'0': 'package-0', '1': 'package-1', '0:0': 'core', '2': 'psys'}

    def write(joules: dict[str, float]) -> None:
        for folder, name in names.items():
            place = tmp_path / f'intel-rapl:{folder}'
            place.mkdir(exist_ok=True)
            (place / 'name').write_text(f'{name}\n')
            (place / 'energy_uj').write_text(str(int(1e6 * joules.get(folder, 1.0))))
            (place / 'max_energy_range_uj').write_text('5000000000')

    return write


def test_packages_count_and_a_counter_may_go_round(rapl: Callable[..., None]) -> None:
    rapl({})
    with Meter(nodes=2) as found:
        # The core is part of the first package, the whole computer holds both; the second went over its end.
        rapl({'0': 3601.0, '0:0': 3601.0, '2': 3601.0, '1': 0.0})
    assert found.energy is not None and found.energy['method'] == 'measured, RAPL x 2 nodes'
    assert found.energy['kwh'] == pytest.approx(2 * (3600 + 4999) / 3.6e6)
    assert found.energy['kg'] == pytest.approx(GRID * found.energy['kwh'])


def test_a_counter_is_read_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    stands, last = iter([0, 90, 30, 80, 10]), [0]  # of a counter of 100 J: 0, 90, 130, 180, 210

    def counters(devices: object) -> dict[str, tuple[float, float]]:
        last[0] = next(stands, last[0])
        return {'RAPL intel-rapl:0': (last[0], 100.0)}

    monkeypatch.setattr(meter, '_EVERY', 0.01)
    monkeypatch.setattr(meter, 'read_joules', counters)
    with Meter() as found:
        deadline = time.monotonic() + 30
        while last[0] != 10 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert found.energy is not None and found.energy['kwh'] == pytest.approx(210 / 3.6e6)


def test_without_a_meter_or_with_a_lost_one_the_energy_stays_blank(
    rapl: Callable[..., None], tmp_path: Path
) -> None:
    with Meter() as found:
        rapl({})  # too late
    assert found.energy is None and found.to_dict()['energy'] is None and found.seconds > 0
    with Meter() as found:
        (tmp_path / 'intel-rapl:1' / 'name').write_text('gone')
    assert found.energy is None


def test_gpus_that_train_are_read_by_the_drivers_library(
    rapl: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Library:
        def nvmlInit_v2(self) -> int:
            return 0

        def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: object) -> int:
            handle._obj.value = 1 + int(uuid[-1:])  # type: ignore[attr-defined]
            return 0

        def nvmlDeviceGetTotalEnergyConsumption(self, handle: object, energy: object) -> int:
            energy._obj.value = 1000 * handle.value  # type: ignore[attr-defined]
            return 0

    def refuse(name: str) -> None:
        raise OSError

    rapl({})
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda i: types.SimpleNamespace(uuid=str(i)))
    monkeypatch.setattr(meter.ctypes, 'CDLL', refuse)
    assert meter.read_joules([1, 2]) == {}  # processors alone would be taken for the whole machine
    monkeypatch.setattr(meter.ctypes, 'CDLL', lambda name: Library())
    found = meter.read_joules([1, 2])
    assert found['NVML 1'] == (2.0, 0.0) and found['NVML 2'] == (3.0, 0.0) and 'NVML 0' not in found
    assert found['RAPL intel-rapl:0'] == (1.0, 5000.0)


def test_what_was_done_before_a_stop_counts_at_the_same_rate() -> None:
    found = Meter()
    found.seconds, found.energy = 10.0, {'kwh': 1.0, 'kg': 0.4, 'method': 'measured, RAPL'}
    costs = Progress(None, 1, before=30.0).costs(found)
    assert costs['seconds'] == 40.0 and costs['energy']['kwh'] == 4.0
    assert costs['energy']['method'] == 'measured, RAPL; scaled to the part before a stop'
    found.energy = None
    assert Progress(None, 1, before=30.0).costs(found)['energy'] is None


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
